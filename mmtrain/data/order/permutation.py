"""Orders of the numbers below some size, in pieces that are made when they are asked for.

A number's place is told by one uniform draw, which is a function of it. So a piece, the numbers
whose draws are in one interval, is found without the others: all draws are made anew, a block at a
time in a core's cache, and those of the interval are kept. Ten million draws take 40 ms, and a
piece of a million has 4 MiB, however many numbers there are. How many draws are in each interval
is counted once, while the piece is found that is wanted first.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from mmtrain.data.order.randomness import GAMMA, MIX_1, MIX_2, stream_key

MOST_SHUFFLED = 5 << 18
"""Numbers of a piece at most."""
_BLOCK = 1 << 15
_LOST = 11
"""Bits of 64 that a draw in [0, 1) does not keep."""
_BUCKET_BITS = 12
_Chosen = tuple[np.ndarray, np.ndarray]
"""Numbers, and the states behind their draws."""


class Permutation:
    """The numbers below `size` in the order of one uniform draw each, by places.

    Equal draws stand in the order of their numbers, so that it is the same on every machine.

    Args:
        size: how many numbers.
        seed: the run's.
        epoch: the epoch that the order belongs to.
        purpose: what it is for; see `uniform`.
        most: numbers of a piece at most, as far as draws are even.
    """

    def __init__(
        self, size: int, *, seed: int, epoch: int, purpose: str, most: int = MOST_SHUFFLED
    ) -> None:
        self.size = size
        self._key = stream_key(seed=seed, epoch=epoch, purpose=purpose)
        self._num_pieces = max(1, -(-size // most))
        self._bits = max(_BUCKET_BITS, self._num_pieces.bit_length()) * (self._num_pieces > 1)
        self._found: dict[int, list[_Chosen]] = {}
        self._dtype = np.int32 if size <= np.iinfo(np.int32).max else np.int64

    def pieces_at(self, place_B: np.ndarray) -> np.ndarray:
        """The piece that each place is in, int64 [B]."""
        if self._bits and place_B.size and "_ends" not in self.__dict__:
            likely = int(place_B[0]) * self._num_pieces // self.size
            self._found[likely] = list(self._choose(*self._bounds(likely), counts=True))
        ends = self._ends[self._buckets[1:] - 1]
        return np.searchsorted(ends, place_B, side="right")

    def piece(self, piece: int) -> tuple[np.ndarray, int]:
        """The numbers in a piece, int32 where that holds them, and the place of the first."""
        found = self._found.get(piece)
        self._found = {}
        return self._between(*self._bounds(piece), found=found)

    def _bounds(self, piece: int) -> tuple[int, int]:
        first, stop = self._buckets[piece : piece + 2].tolist()
        return first, stop

    def at(self, place: int) -> int:
        """The number at one place; the piece around it is not made."""
        bucket = int(np.searchsorted(self._ends, place, side="right"))
        numbers, first = self._between(bucket, bucket + 1)
        return int(numbers[place - first])

    @cached_property
    def _buckets(self) -> np.ndarray:
        """The interval that each piece begins with, and behind the last the end."""
        return np.arange(self._num_pieces + 1) * (1 << self._bits) // self._num_pieces

    @cached_property
    def _ends(self) -> np.ndarray:
        """Where the numbers end whose draws are in each of 2^n equal intervals; of one, if all
        numbers are one piece."""
        if not self._bits:
            return np.array([self.size])
        counts = np.zeros(1 << self._bits, dtype=np.int64)
        for _, state_N in self._states():
            self._count(state_N, counts)
        return np.cumsum(counts)

    def _count(self, state_N: np.ndarray, counts: np.ndarray) -> None:
        bucket_N = (state_N >> np.uint64(64 - self._bits)).view(np.int64)
        counts += np.bincount(bucket_N, minlength=counts.size)

    def _choose(self, bucket: int, stop: int, *, counts: bool = False) -> Iterator[_Chosen]:
        """The numbers whose draws are in a range of intervals, with their states, in order; all
        draws are counted on the way."""
        low = np.uint64(bucket << 64 - self._bits)
        last = np.uint64((stop - bucket << 64 - self._bits) - 1)
        count_I = np.zeros(1 << self._bits, dtype=np.int64)
        for number, state_N in self._states():
            if counts:
                self._count(state_N, count_I)
            chosen = np.flatnonzero(state_N - low <= last)  # wraps around where it is below
            yield chosen + number, state_N[chosen]
        if counts:
            self._ends = np.cumsum(count_I)

    def _states(self) -> Iterator[tuple[int, np.ndarray]]:
        """A block at a time: its first number, and the states behind all draws. They agree with
        the draws in the high half, which tells the interval."""
        steps = np.arange(min(_BLOCK, self.size), dtype=np.uint64) * _unsigned(GAMMA)
        for first in range(0, self.size, _BLOCK):
            begin = _unsigned(first * GAMMA + self._key)
            yield first, _mixed(steps[: self.size - first] + begin)

    def _between(
        self, bucket: int, stop: int, *, found: Iterable[_Chosen] | None = None
    ) -> tuple[np.ndarray, int]:
        """The numbers whose draws are in a range of intervals, and the place of the first.

        Sorting plain numbers is many times faster than sorting by them. So each draw takes the high
        bits and its number the low ones, and draws that agree in the bits that are left are put
        right afterwards.
        """
        first = int(self._ends[bucket - 1]) if bucket else 0
        bits = 64 - self._bits
        low = np.uint64(bucket << bits)
        last = (stop - bucket << bits) - 1
        width = max(1, (self.size - 1).bit_length())
        lost = np.uint64(max(0, last.bit_length() - _LOST + width - 64))
        packed = np.empty(int(self._ends[stop - 1]) - first, dtype=np.uint64)
        filled = 0
        for number_N, state_N in self._choose(bucket, stop) if found is None else found:
            row = packed[filled : filled + number_N.size]
            draw_N = _draws(state_N) - (low >> np.uint64(_LOST))
            np.left_shift(draw_N >> lost, np.uint64(width), out=row)
            row |= number_N.view(np.uint64)
            filled += number_N.size
        packed.sort()
        tied = _tied(packed, width) if lost else np.zeros(0, dtype=np.int64)
        packed &= np.uint64((1 << width) - 1)
        numbers = packed.astype(self._dtype)
        if tied.size:
            of_tied = numbers[tied]
            numbers[tied] = of_tied[np.lexsort((of_tied, self._draw(of_tied)))]
        return numbers, first

    def _draw(self, number_N: np.ndarray) -> np.ndarray:
        """Each number's draw."""
        return _draws(_mixed(number_N.astype(np.uint64) * _unsigned(GAMMA) + _unsigned(self._key)))


def _tied(packed: np.ndarray, width: int) -> np.ndarray:
    """Where sorted rows stand that agree with a neighbour above the low bits."""
    least = np.uint64(1 << width)
    same = [
        np.flatnonzero(packed[at + 1 : at + 1 + _BLOCK] ^ packed[at:-1][:_BLOCK] < least) + at
        for at in range(0, packed.size, _BLOCK)
    ]
    before = np.concatenate(same)
    return np.union1d(before, before + 1)


def _mixed(x: np.ndarray) -> np.ndarray:
    """What `uniform` makes of a number's position in its stream, up to the last step; in place."""
    _mix(x)
    x ^= x >> np.uint64(31)
    _mix(x)
    x ^= x >> np.uint64(31)
    x += _unsigned(GAMMA)
    _mix(x)
    return x


def _draws(state: np.ndarray) -> np.ndarray:
    """The last step; what a draw in [0, 1) keeps is left, times 2^53. In place."""
    state ^= state >> np.uint64(31)
    state >>= np.uint64(_LOST)
    return state


def permutation(size: int, *, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """All of a `Permutation` at once."""
    whole = Permutation(size, seed=seed, epoch=epoch, purpose=purpose, most=max(1, size))
    return whole.piece(0)[0]


def _unsigned(value: int) -> np.uint64:
    return np.uint64(value % (1 << 64))


def _mix(x: np.ndarray) -> None:
    """SplitMix64's finaliser over uint64 but for its last step, in place."""
    x ^= x >> np.uint64(30)
    x *= _unsigned(MIX_1)
    x ^= x >> np.uint64(27)
    x *= _unsigned(MIX_2)
