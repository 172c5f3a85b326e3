"""How many samples a forward of an evaluation takes, and how wide it is.

The last bits of a product depend on its shape, not on a row's place in it: where forwards are of
fixed shapes, what a model makes of a sample depends on the sample and the weights alone.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

FIXED_BATCH = 64
"""Images where results must not depend on how they came about."""
FIXED_ROWS = 32
"""Questions there, of images of one piece."""
FIXED_STEP = 8
"""Tokens: there a question is as wide as the next multiple of so many."""
FAST_BATCH = 256
"""Images where they may, and nobody says how many."""

_T = TypeVar("_T")


def forward_size(batch_size: int, *, fast: bool) -> int:
    """Samples of a forward: those asked for, if the last digits of a result may depend on it."""
    return batch_size if fast else FIXED_BATCH


def fixed_rows(num_pieces: int) -> int:
    """Questions of a fixed forward: fewer of an image of many pieces, that the tokens stay as
    many."""
    return max(1, FIXED_ROWS // num_pieces)


def fixed_width(num_tokens: int) -> int:
    """Tokens of a fixed forward of questions of so many."""
    return -(-num_tokens // FIXED_STEP) * FIXED_STEP


def alike(
    rows: Sequence[_T], key: Callable[[_T], Hashable], *, size: Callable[[_T], int] | None
) -> Iterator[list[int]]:
    """The rows' numbers by forwards: those of one key together, in their order.

    Args:
        rows: what goes through the model.
        key: what must be alike in a forward.
        size: rows of a forward that one of it is in. None: all of a key.
    """
    found: dict[Hashable, list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault(key(row), []).append(number)
    for numbers in found.values():
        most = len(numbers) if size is None else size(rows[numbers[0]])
        for at in range(0, len(numbers), most):
            yield numbers[at : at + most]


def filled_up(rows: Sequence[_T], size: int | None) -> list[_T]:
    """The rows with the first of them again and again up to `size`; None: as they are."""
    return [*rows, *[rows[0]] * (0 if size is None else size - len(rows))]
