"""Which source the n-th sample of a mixture comes from: a closed form of the weights and n.

Positions are cut into blocks of `WINDOW`. A source of share w holds floor(WINDOW * w) slots of
every block, always the same ones. The E slots that are left, *columns* here, go in each block to E
of the sources, to none twice: to source i in a part f_i = frac(WINDOW * w_i) of the blocks. So a
block has floor or ceil of each share. What keeps every other window so, too:

A window that begins inside a block has each slot once: those behind its beginning from this block,
those before it from the next. A source that has column p in one block and column q in the next is
twice in a window if q stands before p, and never else. So no source may go back. Block b has the
phase u = b * step mod 1. Each column is a circle of circumference 1 cut into arcs, each of a
source, and belongs in block b to the source whose arc holds u. The arcs of a source are of length f
in all:

- A *large* source (f > 1 - step) has its arc in a column of its own, and never moves. That leaves
  in this column a hole, an arc of length 1 - f. The holes are laid so that each begins at the phase
  where the one before ends. With step <= 1 / (E + 1) there are at most E large sources, since more
  would have more than E in sum.
- The holes in this order, then the columns without a large source, are one line, on which phases
  count on; their length is that of the *small* sources (f <= 1 - step), which are laid on it end to
  end. A small source is shorter than 1, so it has no phase twice. From one block to the next the
  phase goes step ahead, on the line too, or it goes step - 1 <= -f ahead, which leaves the source.
  So a source that is there in both has gone ahead on the line, whose columns are in the order of
  time.

Weights are fractions, so phases are whole numbers modulo their common denominator, and step is
prime to it: after so many blocks each source has had its exact share. The step's continued
fraction is as near as can be to one of ones only, so that parts of this are even as well.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from math import gcd

import numpy as np

WINDOW = 1000
"""Any so many samples in a row have of each source floor or ceil of its share."""

_GOLDEN = (5**0.5 - 1) / 2
_MILLION = 10**6


class Shares:
    """The sources of positions 0, 1, 2 ... by weight.

    Args:
        weights: of each source, 0 or above, not all 0.
        turn: in [0, 1), where in the cycle of blocks and in a block position 0 stands: several
            sequences that are read side by side begin apart.
    """

    def __init__(self, weights: Sequence[Fraction], *, turn: Fraction = Fraction(0)) -> None:
        total = sum(weights, Fraction(0))
        assert total > 0 and min(weights) >= 0 and 0 <= turn < 1
        shares = [weight / total for weight in weights]
        self.num_sources = len(weights)
        self._cycle = int(np.lcm.reduce([share.denominator for share in shares], dtype=object))
        whole = [WINDOW * share for share in shares]
        self._base = [int(share) for share in whole]
        # In units of a phase.
        parts = {
            i: int((share - base) * self._cycle)
            for i, (share, base) in enumerate(zip(whole, self._base, strict=True))
            if share > base
        }
        num_columns = WINDOW - sum(self._base)
        self._step = _step(self._cycle, num_columns)
        self._columns = _lay(parts, num_columns, cycle=self._cycle, step=self._step)
        self._phase = int(turn * self._cycle)
        self._skipped = int(turn * WINDOW)
        self._slots = _spread([*self._base, num_columns])
        self._places = np.flatnonzero(self._slots == self.num_sources)

    def sources(self, first: int, count: int) -> np.ndarray:
        """The sources of positions `first` to `first + count`, int64 [count]."""
        start = first + self._skipped
        blocks = range(start // WINDOW, -(-(start + count) // WINDOW))
        found = np.concatenate([self._block(b) for b in blocks]) if count else np.zeros(0, np.int64)
        skipped = start - blocks.start * WINDOW
        return found[skipped : skipped + count]

    def counts(self, position: int) -> np.ndarray:
        """How many of the positions before this one each source has, int64 [sources]."""
        return self._counts(position + self._skipped) - self._before

    @cached_property
    def _before(self) -> np.ndarray:
        return self._counts(self._skipped)

    def _counts(self, position: int) -> np.ndarray:
        block, inside = divmod(position, WINDOW)
        counts = np.array([block * base for base in self._base], dtype=np.int64)
        for column in self._columns:
            for source, start, stop in column:
                counts[source] += self._blocks_in(start, stop, block)
        held = self._block(block)[:inside]
        return counts + np.bincount(held, minlength=self.num_sources)

    def _block(self, block: int) -> np.ndarray:
        phase = (block * self._step + self._phase) % self._cycle
        slots = self._slots.copy()
        for place, column in zip(self._places, self._columns, strict=True):
            arc = bisect_right([start for _, start, _ in column], phase) - 1
            slots[place] = column[arc][0]
        return slots

    def _blocks_in(self, start: int, stop: int, blocks: int) -> int:
        """Of the first `blocks` blocks, those whose phase is in [start, stop)."""

        def passed(mark: int) -> int:
            return floor_sum(blocks, self._cycle, self._step, self._phase - mark)

        return passed(start) - passed(stop)


def floor_sum(count: int, divisor: int, factor: int, offset: int) -> int:
    """The sum of floor((factor * x + offset) / divisor) over x = 0 ... count - 1.

    Counts lattice points under a line as Euclid's algorithm divides: O(log divisor).
    """
    total = 0
    while count > 0:
        total += (count - 1) * count // 2 * (factor // divisor) + count * (offset // divisor)
        factor, offset = factor % divisor, offset % divisor
        top = factor * count + offset
        if top < divisor:
            break
        count, offset = divmod(top, divisor)
        factor, divisor = divisor, factor
    return total


def _step(cycle: int, num_columns: int) -> int:
    """Prime to the cycle, at most cycle / (columns + 1), and near what spreads best."""
    most = max(1, cycle // (num_columns + 1))
    # Whole numbers: a cycle may be beyond what a float holds.
    aim = min(most, max(1, cycle * _MILLION // round(_MILLION * (num_columns + 1 + _GOLDEN))))
    near = (aim + sign * away for away in range(cycle) for sign in (-1, 1))
    return next(step for step in near if 1 <= step <= most and gcd(step, cycle) == 1)


Arc = tuple[int, int, int]
"""A source, and the phases from and up to which it has a column."""


def _lay(parts: Mapping[int, int], num_columns: int, *, cycle: int, step: int) -> list[list[Arc]]:
    """The arcs of each column, in the order of phases."""
    large = {i: part for i, part in parts.items() if part > cycle - step}
    assert len(large) <= num_columns
    columns: list[list[Arc]] = [[] for _ in range(num_columns)]
    ends, end = [], 0
    for column, (source, part) in enumerate(large.items()):
        # Behind the hole, which begins where the one before it ends.
        hole = cycle - part
        _add(columns[column], source, end + hole, part, cycle=cycle)
        end += hole
        ends.append(end)
    ends += [end + cycle * (n + 1) for n in range(num_columns - len(large))]
    at, column = 0, 0
    for source, part in parts.items():
        if source in large:
            continue
        left = part
        while left:
            while at == ends[column]:
                column += 1
            length = min(left, ends[column] - at)
            _add(columns[column], source, at, length, cycle=cycle)
            at, left = at + length, left - length
    return [sorted(arcs, key=lambda arc: arc[1]) for arcs in columns]


def _add(arcs: list[Arc], source: int, start: int, length: int, *, cycle: int) -> None:
    """Add an arc, in two where it passes phase 0."""
    start %= cycle
    stop = start + length
    arcs.append((source, start, min(stop, cycle)))
    if stop > cycle:
        arcs.append((source, 0, stop - cycle))


def _spread(counts: Sequence[int]) -> np.ndarray:
    """Slots [sum(counts)], each kind spread evenly over them: of n slots it has n times its share,
    to less than one (Tijdeman's solution of the chairman assignment problem, 1980)."""
    count_K = np.array(counts, dtype=np.int64)
    total, kinds = int(count_K.sum()), max(2, int(np.count_nonzero(count_K)))
    slack = 2 * kinds - 2
    slots, given_K = np.empty(total, dtype=np.int64), np.zeros_like(count_K)
    for n in range(total):
        # In units of 1 / (total * slack): what is owed after this slot.
        owed_K = ((n + 1) * count_K - total * given_K) * slack
        ready = np.flatnonzero(owed_K >= total)
        patience = (total * (slack - 1) - owed_K[ready]) / count_K[ready]
        slots[n] = ready[np.argmin(patience)]
        given_K[slots[n]] += 1
    return slots
