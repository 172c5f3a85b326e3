"""What evaluations left in a run folder: their results, scores of earlier steps, and failures."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmtrain.eval.failure import FAILED
from mmtrain.report.intervals import Intervals, read_intervals
from mmtrain.report.pictures import picture_uri
from mmtrain.report.reading import has, number, read_object, read_steps
from mmtrain.train.metrics import EVAL_FAILED

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
        numbers = {key: number(value) for key, value in self.result.items()}
        return {key: value for key, value in numbers.items() if value is not None}


def evaluation_files(folder: Path) -> list[Path]:
    """The results of RUN/eval, by name."""
    return [file for file in sorted(folder.glob("*.json")) if not file.name.endswith(FAILED)]


def read_evaluation(path: Path, result: dict[str, Any], notes: list[str]) -> Evaluation:
    """An evaluation by its result's file and what that holds."""
    result = dict(result)
    if "examples" in result:
        result["examples"] = _well_formed(result["examples"], path, notes)
    for key, wanted in _ROWS.items():
        if key in result:
            rows = result[key] if isinstance(result[key], list) else []
            result[key] = [row for row in rows if has(row, wanted)]
    return Evaluation(
        name=path.stem,
        kind=_kind(result, path, notes),
        result=result,
        history=read_steps(path.with_suffix(".history.jsonl"), notes),
        pictures=_read_pictures(path.parent, result),
        intervals=read_intervals(path, result, notes),
    )


def _kind(result: dict[str, Any], path: Path, notes: list[str]) -> Kind:
    for kind, keys in _FIGURES.items():
        # Classifiers on frozen features have the figures of a zero-shot evaluation, and a method.
        is_probe = result.get("method", "zero-shot") != "zero-shot"
        if keys[0] in result and (kind != "zero-shot" or not is_probe):
            lacking = [key for key in keys if not _is_figure(key, result.get(key))]
            if not lacking:
                return kind
            notes.append(f"{path.name} has no figure {', '.join(lacking)}.")
            break
    return "other"


def _is_figure(key: str, value: Any) -> bool:
    """Whether it is a number, and of what is counted one that something is divided by."""
    found = number(value)
    return found is not None and (found > 0 or not key.startswith("num_"))


_ROWS: dict[str, dict[str, type]] = {
    "confusions": {"name": str, "predicted": str, "count": int},
    "references": {"name": str, "top1": float, "top5": float},
    "reliability": {"count": int, "confidence": float, "top1": float},
}
"""The lists of a result that the page shows, and what each row of them needs."""


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


def failures(folder: Path, notes: list[str]) -> list[str]:
    """A line for each evaluation whose last attempt failed."""
    found = (read_object(file, notes) for file in sorted(folder.glob(f"*{FAILED}")))
    return [
        f"Evaluation {one['name']} failed at step {one['step']}: {one['error']} "
        f"({one['repeat']} does it again)."
        for one in found
        if has(one, {"name": str, "step": int, "error": str, "repeat": str})
    ]


def earlier_failures(folder: Path, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A line for each evaluation that failed, but not when it was last tried."""
    steps: dict[str, list[int]] = {}
    for row in rows:
        name, step = row.get(EVAL_FAILED), row.get("step")
        if isinstance(name, str) and isinstance(step, int) and step not in steps.get(name, []):
            steps.setdefault(name, []).append(step)
    for name, failed in steps.items():
        if not (folder / f"{name}{FAILED}").is_file():
            told = ", ".join(map(str, failed))
            yield f"Evaluation {name} failed at step {told}, and was done later."
