"""Files of a run, read without trusting that they are whole: what cannot be read is noted."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmtrain.files import parse_json
from mmtrain.train.metrics import EVAL_FAILED

_LARGEST = 1e300
"""Sums and differences of larger ones would be infinite."""
_STEPS = 1 << 53
"""As many as a drawing's axis can tell apart."""


def column(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have a finite `key`."""
    pairs = [(row["step"], number(row.get(key))) for row in rows]
    return [(step, value) for step, value in pairs if value is not None]


def number(value: Any) -> float | None:
    """A finite number that can be drawn, or None for anything else that JSON can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= _LARGEST else None


def read_text(path: Path, notes: list[str]) -> str:
    """A file's text; empty where there is none."""
    if not path.is_file():
        return ""
    try:
        # A kill can cut a character in two.
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror}).")
        return ""


def read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """A file's JSON object; empty where there is none."""
    text = read_text(path, notes)
    try:
        value = parse_json(text) if text else {}
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} is damaged and left out.")
    return {}


def parse_recipe(text: str) -> dict[str, Any]:
    """The tables of recipe.toml; none of one that is damaged, which the page shows as it stands."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):  # also of a number that Python refuses to read
        return {}


def read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    rows: list[dict[str, Any]] = []
    damaged = 0
    for line in read_text(path, notes).split("\n"):
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


def read_steps(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """A log's rows by step, see `steps_of`."""
    return steps_of(read_lines(path, notes))


def steps_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by step; of a step that a resume did again the later one."""
    latest = {row["step"]: row for row in rows if is_of_step(row)}
    return [latest[step] for step in sorted(latest)]


def is_of_step(row: dict[str, Any]) -> bool:
    """Whether a log's row is of a step that was taken."""
    step = row.get("step")
    return type(step) is int and 0 <= step < _STEPS and EVAL_FAILED not in row


def has(row: Any, wanted: dict[str, type]) -> bool:
    """Whether a row is an object with these fields; numbers must be finite."""
    return isinstance(row, dict) and all(
        isinstance(row.get(key), str) if kind is str else number(row.get(key)) is not None
        for key, kind in wanted.items()
    )
