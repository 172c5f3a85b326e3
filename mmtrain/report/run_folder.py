"""What a run folder holds, read without trusting that it is complete: a run may still be going."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmtrain.errors import UsageError
from mmtrain.eval.failure import FAILED
from mmtrain.files import parse_json, real_path
from mmtrain.report.intervals import Intervals, read_intervals
from mmtrain.report.look_page import ShownLook, read_look
from mmtrain.report.pictures import picture_uri
from mmtrain.train.metrics import EVAL_FAILED

LOOK_DIR = "look"
RECALLS = tuple(f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))

Kind = Literal["zero-shot", "probe", "retrieval", "questions", "other"]

# The figures that make a result one of a kind; all of them are shown.
_CLASSIFIED = ("top1", "top5", "num_classes", "num_samples")
_FIGURES: dict[Kind, tuple[str, ...]] = {
    "zero-shot": _CLASSIFIED,
    "probe": _CLASSIFIED,
    "retrieval": (*RECALLS, "num_images", "num_texts"),
    "questions": ("num_questions", "accuracy", "num_images"),
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One eval/NAME.json and what NAME scored at earlier steps."""

    name: str
    """The file's name without its suffix."""
    kind: Kind
    """What its figures say it is."""
    result: dict[str, Any]
    """The file's content."""
    history: list[dict[str, Any]]
    """eval/NAME.history.jsonl: one dict of figures per evaluated step, by step."""
    pictures: dict[str, str]
    """Data URIs of the pictures that the result names."""
    intervals: Intervals
    """Of its figures, where they can be told."""

    @property
    def figures(self) -> dict[str, float]:
        """The plain numbers of the result."""
        numbers = {key: _number(value) for key, value in self.result.items()}
        return {key: value for key, value in numbers.items() if value is not None}


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
    """look/: what the model made of some held-out images."""
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
    return RunFolder(
        path=path,
        name=real_path(path).name,
        metrics=_read_steps(path / "metrics.jsonl", notes),
        evaluations=[
            _read_evaluation(file, result, notes)
            for file in sorted((path / "eval").glob("*.json"))
            if not file.name.endswith(FAILED) and (result := _read_object(file, notes))
        ],
        bad_samples=_read_lines(path / "bad_samples.jsonl", notes),
        bad_batches=_read_lines(path / "bad_batches.jsonl", notes),
        recipe=_read_text(path / "recipe.toml", notes),
        facts=_read_object(path / "run.json", notes),
        look=read_look(path / LOOK_DIR, notes),
        notes=[*_failures(path / "eval", notes), *_earlier_failures(path), *notes],
    )


def _failures(folder: Path, notes: list[str]) -> list[str]:
    """A line for each evaluation whose last attempt failed."""
    found = (_read_object(file, notes) for file in sorted(folder.glob(f"*{FAILED}")))
    return [
        f"Evaluation {one['name']} failed at step {one['step']}: {one['error']} "
        f"({one['repeat']} does it again)."
        for one in found
        if _has(one, {"name": str, "step": int, "error": str, "repeat": str})
    ]


def _earlier_failures(path: Path) -> Iterator[str]:
    """A line for each evaluation that failed, but not when it was last tried."""
    steps: dict[str, list[int]] = {}
    for row in _read_lines(path / "metrics.jsonl", []):
        name, step = row.get(EVAL_FAILED), row.get("step")
        if isinstance(name, str) and isinstance(step, int) and step not in steps.get(name, []):
            steps.setdefault(name, []).append(step)
    for name, failed in steps.items():
        if not (path / "eval" / f"{name}{FAILED}").is_file():
            told = ", ".join(map(str, failed))
            yield f"Evaluation {name} failed at step {told}, and was done later."


def is_run(path: Path) -> bool:
    """Whether a folder holds what a training writes first."""
    return any((path / name).is_file() for name in ("metrics.jsonl", "recipe.toml"))


def column(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have a finite `key`."""
    pairs = [(row["step"], _number(row.get(key))) for row in rows]
    return [(step, value) for step, value in pairs if value is not None]


def _number(value: Any) -> float | None:
    """A finite number, or None for anything else that JSON can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def _read_text(path: Path, notes: list[str]) -> str:
    if not path.is_file():
        return ""
    try:
        # A kill can cut a character in two.
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror}).")
        return ""


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    text = _read_text(path, notes)
    try:
        value = parse_json(text) if text else {}
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} is damaged and left out.")
    return {}


def _read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    damaged = 0
    for line in _read_text(path, notes).split("\n"):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += 1
    if damaged:
        lines = "1 line" if damaged == 1 else f"{damaged} lines"
        notes.append(f"{lines} of {path.name} could not be read: half written, or damaged.")
    return rows


def _read_steps(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    rows = [row for row in _read_lines(path, notes) if isinstance(row.get("step"), int)]
    latest = {row["step"]: row for row in rows if EVAL_FAILED not in row}
    return [latest[step] for step in sorted(latest)]


def _read_evaluation(path: Path, result: dict[str, Any], notes: list[str]) -> Evaluation:
    result = dict(result)
    if "examples" in result:
        result["examples"] = _well_formed(result["examples"], path, notes)
    for key, wanted in _ROWS.items():
        if key in result:
            rows = result[key] if isinstance(result[key], list) else []
            result[key] = [row for row in rows if _has(row, wanted)]
    return Evaluation(
        name=path.stem,
        kind=_kind(result, path, notes),
        result=result,
        history=_read_steps(path.with_suffix(".history.jsonl"), notes),
        pictures=_read_pictures(path.parent, result),
        intervals=read_intervals(path, result, notes),
    )


def _kind(result: dict[str, Any], path: Path, notes: list[str]) -> Kind:
    for kind, keys in _FIGURES.items():
        # Classifiers on frozen features have the figures of a zero-shot evaluation, and a method.
        is_probe = result.get("method", "zero-shot") != "zero-shot"
        if keys[0] in result and (kind != "zero-shot" or not is_probe):
            lacking = [key for key in keys if _number(result.get(key)) is None]
            if not lacking:
                return kind
            notes.append(f"{path.name} has no figure {', '.join(lacking)}.")
            break
    return "other"


_ROWS: dict[str, dict[str, type]] = {
    "confusions": {"name": str, "predicted": str, "count": int},
    "references": {"name": str, "top1": float, "top5": float},
    "reliability": {"count": int, "confidence": float, "top1": float},
}
"""The lists of a result that the page shows, and what each row of them needs."""


def _has(row: Any, wanted: dict[str, type]) -> bool:
    """Whether a row is an object with these fields; numbers must be finite."""
    return isinstance(row, dict) and all(
        isinstance(row.get(key), str) if kind is str else _number(row.get(key)) is not None
        for key, kind in wanted.items()
    )


_EXAMPLE = {"key": str, "text": str, "predicted": str, "rank": int, "num_candidates": int}


def _well_formed(examples: Any, path: Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The best and the worst, without what is no example."""
    sides: dict[str, list[dict[str, Any]]] = {}
    for side in ("best", "worst"):
        rows = examples.get(side, []) if isinstance(examples, dict) else []
        sides[side] = [
            row
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict)
            and all(isinstance(row.get(key), kind) for key, kind in _EXAMPLE.items())
            and isinstance(row.get("picture"), str)
        ]
        if not isinstance(rows, list) or len(sides[side]) < len(rows):
            notes.append(f"{path.name} has examples that cannot be read.")
    return sides


def _read_pictures(folder: Path, result: dict[str, Any]) -> dict[str, str]:
    """Data URIs by the name in the result; what is missing or outside of the folder is left out."""
    uris: dict[str, str] = {}
    for rows in result.get("examples", {}).values():
        for row in rows:
            for name in (row["picture"], row.get("attention")):
                uri = picture_uri(folder, name) if isinstance(name, str) else None
                if uri is not None:
                    uris[name] = uri
    return uris
