"""What an evaluation, a proof or a page must not be written over."""

from pathlib import Path

import pytest

from mmtrain.commands.outputs import refuse_out, refuse_overwriting
from mmtrain.errors import UsageError

RECORDS = [
    "run.json", "export/config.json", "export/tokenizer_config.json", "checkpoints/a/manifest.json",
    "checkpoints/a/state.json", "embed.json", "keys-00000.json", "open_clip_config.json",
    "model.safetensors.index.json",
]  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_records_of_a_run_and_files_of_a_model_stay(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_overwriting((), {"out": path})  # of that name, but new: nothing is lost
    path.write_text("{}")
    with pytest.raises(UsageError, match="would be lost; name a new one"):
        refuse_overwriting((), {"out": path})
    with pytest.raises(UsageError, match="would be lost; name a new one"):
        refuse_out(path, "--out", ".json")


def test_a_result_is_written_again(tmp_path: Path) -> None:
    for name in ("result.json", "eval.json", "zero_shot.json", "p.jsonl"):
        (tmp_path / name).write_text("{}")
        refuse_overwriting((), {"out": tmp_path / name})
