"""What a run folder holds, read without trusting that it is complete: a run may still be going."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.files import real_path
from mmtrain.report.evaluations import (
    Evaluation,
    Kind,
    earlier_failures,
    evaluation_files,
    failures,
    read_evaluation,
)
from mmtrain.report.look_page import ShownLook, read_look
from mmtrain.report.reading import read_lines, read_object, read_text, steps_of

LOOK_DIR = "look"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run folder's content, parsed."""

    path: Path
    """The folder."""
    name: str
    """The folder's own name."""
    metrics: list[dict[str, Any]]
    """metrics.jsonl by step; a step that a resume did again is there once."""
    evaluations: list[Evaluation]
    """By name."""
    bad_samples: list[dict[str, Any]]
    """bad_samples.jsonl."""
    bad_batches: list[dict[str, Any]]
    """bad_batches.jsonl: steps that were refused because they were not finite."""
    recipe: str
    """recipe.toml as it stands."""
    facts: dict[str, Any]
    """run.json: versions, commit, the data's fingerprint."""
    look: ShownLook | None
    """look/: what the model made of some images of an evaluation."""
    notes: list[str]
    """What could not be read, for the reader of the report."""

    def of_kind(self, kind: Kind) -> list[Evaluation]:
        """The evaluations of one kind."""
        return [one for one in self.evaluations if one.kind == kind]


def read_run(path: Path) -> RunFolder:
    """Read all that a report shows; a missing part is empty, a damaged one is noted.

    Raises:
        UsageError: `path` is no run folder.
    """
    if not is_run(path):
        state = (
            "holds no metrics.jsonl and no recipe.toml"
            if path.is_dir()
            else "is no folder"
            if path.exists()
            else "does not exist"
        )
        raise UsageError(f"run = {path} {state}; name a run folder")
    notes: list[str] = []
    rows, evals = read_lines(path / "metrics.jsonl", notes), path / "eval"
    return RunFolder(
        path=path,
        name=real_path(path).name,
        metrics=steps_of(rows),
        evaluations=[
            read_evaluation(file, result, notes)
            for file in evaluation_files(evals)
            if (result := read_object(file, notes))
        ],
        bad_samples=read_lines(path / "bad_samples.jsonl", notes),
        bad_batches=read_lines(path / "bad_batches.jsonl", notes),
        recipe=read_text(path / "recipe.toml", notes),
        facts=read_object(path / "run.json", notes),
        look=read_look(path / LOOK_DIR, notes),
        notes=[*failures(evals, notes), *earlier_failures(evals, rows), *notes],
    )


def is_run(path: Path) -> bool:
    """Whether a folder holds what a training writes first."""
    return any((path / name).is_file() for name in ("metrics.jsonl", "recipe.toml"))
