"""How many rows each global batch has, where that changes in the course of a run."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class SizedBatches:
    """Batches of one size, from one of them on."""

    first: int
    """The number of the first."""
    batch_size: int
    """Rows of each."""
    key: str = "train.batch_size"
    """The setting that says so, for messages."""

    def __str__(self) -> str:
        return f"{self.key} = {self.batch_size}"


@dataclass(frozen=True)
class BatchSizes:
    """The sizes of all batches, the last one without end.

    >>> parts = [SizedBatches(first=0, batch_size=4), SizedBatches(first=2, batch_size=6)]
    >>> sizes = BatchSizes(parts)
    >>> [sizes.size(n) for n in range(4)], [sizes.rows_before(n) for n in range(4)]
    ([4, 4, 6, 6], [0, 4, 8, 14])
    """

    parts: Sequence[SizedBatches]
    """The first from batch 0 on, then rising."""
    _firsts: list[int] = field(init=False)
    _rows: list[int] = field(init=False)
    """Rows before each part."""

    def __post_init__(self) -> None:
        firsts = [part.first for part in self.parts]
        assert firsts[0] == 0 and all(low < high for low, high in pairwise(firsts))
        rows = [0]
        for part, after in pairwise(self.parts):
            rows.append(rows[-1] + (after.first - part.first) * part.batch_size)
        object.__setattr__(self, "_firsts", firsts)
        object.__setattr__(self, "_rows", rows)

    @property
    def is_even(self) -> bool:
        """Whether all batches have as many rows."""
        return len({part.batch_size for part in self.parts}) == 1

    @property
    def unit(self) -> int:
        """The largest number of rows that divides all sizes."""
        return math.gcd(*(part.batch_size for part in self.parts))

    def part(self, number: int) -> int:
        """Which of the parts a batch is of."""
        return bisect_right(self._firsts, number) - 1

    def size(self, number: int) -> int:
        """Rows of a batch."""
        return self.parts[self.part(number)].batch_size

    def rows_before(self, number: int) -> int:
        """Rows of all batches before one."""
        part = self.part(number)
        return self._rows[part] + (number - self._firsts[part]) * self.parts[part].batch_size

    def whole(self, num_rows: int) -> int:
        """Batches that so many rows fill."""
        part = bisect_right(self._rows, num_rows) - 1
        return self._firsts[part] + (num_rows - self._rows[part]) // self.parts[part].batch_size

    def covering(self, num_rows: int) -> int:
        """Batches that so many rows are in, the last one filled or not."""
        number = self.whole(num_rows)
        return number + (self.rows_before(number) < num_rows)


def batch_sizes(given: "int | BatchSizes") -> BatchSizes:
    """The sizes of all batches, where one number stands for all of them."""
    if isinstance(given, BatchSizes):
        return given
    return BatchSizes([SizedBatches(first=0, batch_size=given)])
