"""Writes mmtrain/commands/model_sizes.json: what `mmtrain models` says of every architecture.

    python tools/write_model_sizes.py

Each is built without memory for its weights and counted, as `mmtrain summary NAME` does.
"""

import json

from mmtrain.commands.model_list import SIZES_FILE
from mmtrain.models.named import MODEL_NAMES, named_model
from mmtrain.report.summary import summarize


def size_of(name: str) -> dict[str, int]:
    """One architecture's row."""
    config = named_model(name)
    summary = summarize(config)
    return {
        "image_size": config.vision.image_size,
        "context_length": config.text.context_length,
        "parameters": summary.num_parameters,
        "image_flops": summary.image_flops,
        "text_flops": summary.text_flops,
    }


def main() -> None:
    """Write the file, a line an architecture."""
    lines = [f"{json.dumps(name)}: {json.dumps(size_of(name))}" for name in MODEL_NAMES]
    SIZES_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
