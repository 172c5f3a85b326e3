"""The samples of a mixture in a row: which source each is of, and which of its samples it is."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from mmtrain.data.order.shares import Shares

MixtureEnd = Literal["stop", "repeat", "drop_source"]

Weights = tuple[Fraction, ...]

_MOST = 1 << 60
"""Samples, beyond what any run sees and within what an int64 counts."""


@dataclass(frozen=True)
class _Segment:
    """A part of the stream in which the weights stay."""

    start: int
    shares: Shares
    given: np.ndarray
    """What each source has given before it."""


class Stream:
    """Sample n of the stream is sample k of one of the sources, asked in any order.

    Args:
        schedule: the sources' weights from a number of the stream on, from 0, rising.
        limits: how many samples each source has; None: without end.
        end: what becomes of the stream when a source has given all: it stops, or goes on with the
            others, whose weights count among themselves. With "repeat" no limits are known.
        turn: as `Shares` takes it.
    """

    def __init__(
        self,
        schedule: Sequence[tuple[int, Weights]],
        limits: Sequence[int | None],
        *,
        end: MixtureEnd,
        turn: Fraction = Fraction(0),
    ) -> None:
        self.end: int | None = None
        """How long it is; None: without end."""
        self.ended_by: int | None = None
        """The source that ended it."""
        self._segments: list[_Segment] = []
        self._limits = limits
        self._build(schedule, end=end, turn=turn)
        self._starts = [segment.start for segment in self._segments]

    def _build(
        self, schedule: Sequence[tuple[int, Weights]], *, end: MixtureEnd, turn: Fraction
    ) -> None:
        starts = [start for start, _ in schedule]
        given = np.zeros(len(self._limits), dtype=np.int64)
        start, dropped = 0, set[int]()
        while True:
            following = bisect_right(starts, start)
            weights = [
                Fraction(0) if source in dropped else weight
                for source, weight in enumerate(schedule[following - 1][1])
            ]
            if not any(weights):
                self.end = start
                return
            segment = _Segment(start, Shares(weights, turn=turn), given)
            self._segments.append(segment)
            change = starts[following] if following < len(starts) else None
            spent = self._first_spent(segment, weights)
            if spent is not None and (change is None or spent[0] <= change):
                start, source = spent
                self.ended_by = source
                if end == "stop":
                    self.end = start
                    return
                dropped.add(source)
            elif change is not None:
                start = change
            else:
                return
            given = given + segment.shares.counts(start - segment.start)

    def _first_spent(
        self, segment: _Segment, weights: Sequence[Fraction]
    ) -> tuple[int, int] | None:
        """Where the first source has given all, and which; as though the weights stayed."""
        found = []
        for source, limit in enumerate(self._limits):
            if limit is None or not weights[source]:
                continue
            left = limit - int(segment.given[source])
            if (after := _first_with(segment.shares, source, left)) is not None:
                found.append((segment.start + after, source))
        return min(found, default=None)

    def counts(self, number: int) -> np.ndarray:
        """How many of the samples before a number each source gives, int64 [sources]."""
        if self.end is not None:
            number = min(number, self.end)
        segment = self._segments[max(0, bisect_right(self._starts, number) - 1)]
        return segment.given + segment.shares.counts(number - segment.start)

    def locate(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Of `count` samples from a number on, as many as there are: sources and samples of these,
        both int64."""
        stop = first + count if self.end is None else min(first + count, self.end)
        sources = []
        number = first
        while number < stop:
            at = bisect_right(self._starts, number)
            until = min(stop, self._starts[at]) if at < len(self._starts) else stop
            segment = self._segments[at - 1]
            sources.append(segment.shares.sources(number - segment.start, until - number))
            number = until
        if not sources:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        source_B = np.concatenate(sources)
        sample_B, before = np.empty_like(source_B), self.counts(first)
        for source in np.unique(source_B).tolist():
            rows = np.flatnonzero(source_B == source)
            sample_B[rows] = before[source] + np.arange(rows.size)
        return source_B, sample_B


def _first_with(shares: Shares, source: int, count: int) -> int | None:
    """The number of samples of which a source has so many for the first time; None: in no run."""
    low, high = 0, 1
    while shares.counts(high)[source] < count:
        if high >= _MOST:
            return None
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if shares.counts(middle)[source] < count:
            low = middle + 1
        else:
            high = middle
    return low
