"""Draws damage to the files of a finished run: cut, emptied, swapped, flipped, wrongly typed."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.recipes import NUMBERS, OTHERS, TEXTS


def draw_damage(rng: random.Random, run: Path) -> None:
    """Damage one file of a run folder, now and then two."""
    for _ in range(rng.choice((1, 1, 2))):
        files = sorted(path for path in run.rglob("*") if path.is_file())
        if files:
            rng.choice(_DAMAGES)(rng, rng.choice(files))


def _empty(rng: random.Random, path: Path) -> None:
    path.write_bytes(b"")


def _cut(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(max(1, len(content)))])


def _flip(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _append(rng: random.Random, path: Path) -> None:
    path.write_bytes(
        path.read_bytes() + rng.choice((b"\0" * 100, b"}\n", b"x", b"[1]\n", b"\xff\n"))
    )


def _swap(rng: random.Random, path: Path) -> None:
    other = rng.choice(sorted(each for each in path.parent.rglob("*") if each.is_file()))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def _remove(rng: random.Random, path: Path) -> None:
    path.unlink()


def _make_folder(rng: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def _nest(rng: random.Random, path: Path) -> None:
    path.write_text(rng.choice(("[", '{"a": ')) * 100_000)


def _retype(rng: random.Random, path: Path) -> None:
    """Another value somewhere in a JSON file, or in a line of one."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        place = rng.randrange(len(lines))
        lines[place] = _changed(rng, lines[place])
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    except (ValueError, RecursionError):
        try:
            path.write_text(json.dumps(_changed(rng, json.loads(path.read_text()))))
        except (ValueError, RecursionError):  # one that was nested before
            _flip(rng, path)


def _changed(rng: random.Random, value: Any) -> Any:
    if rng.random() < 0.8 and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            return {name: each for name, each in value.items() if name != key}
        return {**value, key: _changed(rng, value[key])}
    if rng.random() < 0.8 and isinstance(value, list) and value:
        place = rng.randrange(len(value))
        return [*value[:place], _changed(rng, value[place]), *value[place + 1 :]]
    return rng.choice((*NUMBERS, *TEXTS, *OTHERS, None))


_DAMAGES: tuple[Callable[[random.Random, Path], None], ...] = (
    _empty,
    _cut,
    _flip,
    _append,
    _swap,
    _remove,
    _make_folder,
    _nest,
    *(_retype,) * 4,
)
