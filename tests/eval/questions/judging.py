"""A set judged by both commands, which must say the same."""

import json
from pathlib import Path
from typing import Any

from mmtrain.cli import main
from tests.data.questions.published_files import write_json


def judged(folder: Path, said: Any, files: list[str], *more: str) -> dict[str, Any]:
    """The figures of `eval answers`."""
    words = ["--predictions", write_json(folder / "said.json", said), *files, *more]
    assert main(["eval", "answers", *words, "--out", str(folder / "judged.json")]) == 0
    return json.loads((folder / "judged.json").read_text())


def asked(model: str, folder: Path, files: list[str], *more: str) -> dict[str, Any]:
    """The figures of `eval vqa`, which must be those of its predictions by `eval answers`."""
    paths = ["--predictions", str(folder / "model.json")]
    words = ["--model", model, *files, *more, *paths, "--out", str(folder / "asked.json")]
    assert main(["eval", "vqa", *words]) == 0
    found = json.loads((folder / "asked.json").read_text())
    own = files[files.index("--questions") :]
    assert main(["eval", "answers", *paths, *own, "--out", str(folder / "again.json")]) == 0
    again = json.loads((folder / "again.json").read_text())
    others = {"provenance", "head", "examples", "num_cut", "num_answers_cut"}
    assert {k: v for k, v in found.items() if k not in others} == {
        k: v for k, v in again.items() if k not in others
    }
    return found
