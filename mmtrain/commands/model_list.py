"""`mmtrain models`: the architectures that have a name.

Their sizes stand in model_sizes.json, which `tools/write_model_sizes.py` writes: building all of
them to count takes longer than anybody waits for a list, and importing torch does too.
"""

import json
from pathlib import Path
from typing import Any

SIZES_FILE = Path(__file__).with_name("model_sizes.json")
_HEADINGS = ("name", "image", "text", "parameters", "GFLOPs image", "GFLOPs text")


def models_command() -> None:
    """Print every architecture that model.name knows, with its size."""
    sizes: dict[str, dict[str, int]] = json.loads(SIZES_FILE.read_text(encoding="utf-8"))
    rows = [_HEADINGS, *(_row(name, size) for name, size in sizes.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for name, *figures in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(figures, widths[1:], strict=True)]
        print(f"{name:<{widths[0]}}  {'  '.join(cells)}")


def _row(name: str, size: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        str(size["image_size"]),
        str(size["context_length"]),
        f"{size['parameters'] / 1e6:,.2f} M",
        f"{size['image_flops'] / 1e9:,.2f}",
        f"{size['text_flops'] / 1e9:,.2f}",
    )
