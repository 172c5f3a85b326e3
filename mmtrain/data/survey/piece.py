"""What looking at some samples came to, and several of these as one."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PER_IMAGE = {
    "number": np.int64,
    "image": np.int32,
    "image_bytes": np.int64,
    "width": np.int32,
    "height": np.int32,
    "captions": np.int32,
    "file_hash": np.uint64,
    "picture_hash": np.uint64,
}
"""Columns with a value for each image that can be decoded; `number` is the sample's, `image` which
of its images it is."""
_PER_CAPTION = {"words": np.int32, "tokens": np.int32, "text_hash": np.uint64}
_PER_SAMPLE = {"label": np.int64}
_PER_DIALOGUE = {"turns": np.int32, "images": np.int32, "said": np.int32}
COLUMNS = PER_IMAGE | _PER_CAPTION | _PER_SAMPLE | _PER_DIALOGUE
"""All of them: a caption's (of a dialogue, a turn's), the label of each sample where labels are
asked for, and of each dialogue its turns, images and the tokens of what is said, beside."""
COUNTED = ("kinds", "scripts", "reasons")
"""What is counted by name."""
_MAX_BAD = 100


@dataclass(kw_only=True)
class Piece:
    """What some samples came to."""

    num_looked: int = 0
    """How many there were."""
    columns: dict[str, np.ndarray] = field(default_factory=lambda: columns_of({}))
    """See `COLUMNS`."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Formats of images."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Scripts of captions."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why samples cannot be used."""
    bad: list[dict[str, Any]] = field(default_factory=list)
    """Those that cannot be used, by number and name."""

    def pin_memory(self) -> "Piece":
        """Itself: it holds no tensors."""
        return self


def columns_of(rows: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Columns of lists; those that are not there are empty."""
    return {name: np.array(rows.get(name, []), dtype=kind) for name, kind in COLUMNS.items()}


def joined(pieces: Iterable[Piece]) -> Piece:
    """Several as one: the same, to the bit, whichever samples each of them is of.

    Images are in the order of their samples; of those that cannot be used the first 100 are named.
    """
    whole = Piece()
    columns: dict[str, list[np.ndarray]] = {name: [each] for name, each in whole.columns.items()}
    for piece in pieces:
        whole.num_looked += piece.num_looked
        whole.bad = sorted(whole.bad + piece.bad, key=lambda row: row["sample"])[:_MAX_BAD]
        for name, values in piece.columns.items():
            columns[name].append(values)
        for counted in COUNTED:
            getattr(whole, counted).update(getattr(piece, counted))
    whole.columns = {name: np.concatenate(values) for name, values in columns.items()}
    number_N = whole.columns["number"]
    if (np.diff(number_N) < 0).any():
        order_N = np.argsort(number_N, kind="stable")
        whole.columns |= {name: whole.columns[name][order_N] for name in PER_IMAGE}
    return whole
