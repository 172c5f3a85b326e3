"""What a run folder holds, read without trusting that it is complete: a run may still be going."""

import base64
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError

PICTURE_TYPES = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg"}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One eval/NAME.json and what NAME scored at earlier steps."""

    name: str
    """The file's name without its suffix."""
    result: dict[str, Any]
    """The file's content."""
    history: list[dict[str, Any]]
    """eval/NAME.history.jsonl: one dict of figures per evaluated step, by step."""
    pictures: dict[str, str]
    """Data URIs of the pictures that the result names."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run folder's content, parsed."""

    path: Path
    """The folder."""
    metrics: list[dict[str, Any]]
    """metrics.jsonl by step; a step that a resume did again is there once."""
    evaluations: list[Evaluation]
    """By name."""
    bad_samples: list[dict[str, Any]]
    """bad_samples.jsonl."""
    recipe: str
    """recipe.toml as it stands."""
    facts: dict[str, Any]
    """run.json: versions, commit, the data's fingerprint."""
    notes: list[str]
    """What could not be read, for the reader of the report."""


def read_run(path: Path) -> RunFolder:
    """Read all that a report shows; a missing part is empty, a damaged one is noted.

    Raises:
        UsageError: `path` is no run folder.
    """
    metrics_path = path / "metrics.jsonl"
    if not metrics_path.is_file() and not (path / "recipe.toml").is_file():
        raise UsageError(
            f"run = {path} holds no metrics.jsonl and no recipe.toml; name a run folder"
        )
    notes: list[str] = []
    return RunFolder(
        path=path,
        metrics=_read_steps(metrics_path, notes),
        evaluations=[
            _read_evaluation(file, result, notes)
            for file in sorted((path / "eval").glob("*.json"))
            if (result := _read_object(file, notes))
        ],
        bad_samples=_read_lines(path / "bad_samples.jsonl", notes),
        recipe=_read_text(path / "recipe.toml"),
        facts=_read_object(path / "run.json", notes),
        notes=notes,
    )


def column(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have a finite `key`."""
    return [
        (row["step"], row[key])
        for row in rows
        if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]


def _read_text(path: Path) -> str:
    # A kill can cut a character in two.
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    text = _read_text(path)
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} is damaged and left out.")
    return {}


def _read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    damaged = 0
    for line in _read_text(path).splitlines():
        try:
            row = json.loads(line)
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
    latest = {row["step"]: row for row in rows}
    return [latest[step] for step in sorted(latest)]


def _read_evaluation(path: Path, result: dict[str, Any], notes: list[str]) -> Evaluation:
    return Evaluation(
        name=path.stem,
        result=result,
        history=_read_steps(path.with_suffix(".history.jsonl"), notes),
        pictures=_read_pictures(path.parent, result),
    )


def _read_pictures(folder: Path, result: dict[str, Any]) -> dict[str, str]:
    """Data URIs by the name in the result; what is missing or outside of the folder is left out."""
    uris: dict[str, str] = {}
    for rows in result.get("examples", {}).values():
        for row in rows:
            name = row["picture"]
            file = (folder / name).resolve()
            kind = PICTURE_TYPES.get(file.suffix)
            if kind and file.is_relative_to(folder.resolve()) and file.is_file():
                uris[name] = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
    return uris
