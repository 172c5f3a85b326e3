"""What a rank reads next, for the threads that fill its cache ahead: whole shards, or the ranges of
the batches that come."""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import zip_longest

from mmtrain.data.joins.joined import JoinedSource
from mmtrain.data.order.batches import RowPlan, Rows
from mmtrain.data.order.plan import PADDING
from mmtrain.data.row_plan import shards_in
from mmtrain.data.samples import SampleReader
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.cached import CachedFile
from mmtrain.data.storage.piece import Piece
from mmtrain.data.storage.prefetch import Prefetch

_BATCHES = 8
"""Whose ranges are fetched ahead; whole shards are as far as there is room."""


class Ahead:
    """Fills a cache in the plan's order. Safe to pickle and to fork.

    Args:
        cache: which; it says whether whole shards or ranges.
    """

    def __init__(self, cache: Cache) -> None:
        self._prefetch, self._fetches_ranges = Prefetch(cache), not cache.whole
        self._plan: RowPlan | None = None
        self._own_plan: RowPlan | None = None
        """A copy: two that go through one order keep driving out each other's groups."""
        self._coming: deque[Rows] = deque()
        self._done: set[int] = set()
        """Batches of which all was looked at."""

    def want(
        self, rows: Rows, readers: Sequence[SampleReader], plan: RowPlan, *, last: int
    ) -> None:
        """Go on with what comes behind a batch.

        Args:
            rows: of the batch.
            readers: one of each source.
            plan: the order.
            last: number of the last batch that is read.
        """
        if not self._fetches_ranges:
            sources = [reader.source for reader in readers]
            self._prefetch.want(partial(files_ahead, sources, plan, rows, last=last))
            return
        if self._own_plan is None or plan is not self._plan:
            self._plan, self._own_plan = plan, copy.deepcopy(plan)
            self._forget()
        while self._coming and self._coming[0].number <= rows.number:
            self._done.discard(self._coming.popleft().number)
        first = self._coming[-1].number + 1 if self._coming else rows.number + 1
        for number in range(first, min(rows.number + _BATCHES, last) + 1):
            self._coming.append(self._own_plan.rows(number))
        if left := [each for each in self._coming if each.number not in self._done]:
            self._prefetch.want(partial(ranges_ahead, readers, left, done=self._done))

    def stop(self) -> None:
        """Fetch nothing more than what is on its way."""
        self._prefetch.stop()
        self._forget()

    def _forget(self) -> None:
        self._coming, self._done = deque(), set()


def files_ahead(
    sources: Sequence[SampleSource], plan: RowPlan, rows: Rows, *, last: int
) -> Iterator[CachedFile]:
    """The remote shards that a rank reads from a batch on, soonest first; of several sources in
    turn.

    Args:
        sources: of the plan.
        plan: the order.
        rows: of the batch.
        last: number of the last batch that is read.
    """
    end = plan.rows(last)
    files = [
        source.kept(plan.ahead(rows, number, last=end).tolist())
        for number, source in shards_in(sources, rows)
    ]
    return (file for turn in zip_longest(*files) for file in turn if file is not None)


def ranges_ahead(
    readers: Sequence[SampleReader], coming: Sequence[Rows], *, done: set[int]
) -> Iterator[Piece]:
    """What will be read of the samples of some batches, in their order.

    Args:
        readers: one of each source.
        coming: the rows of the batches.
        done: gets the numbers of those that need no other look.
    """
    for rows in coming:
        is_all = True
        for source, sample in zip(rows.source_B.tolist(), rows.sample_B.tolist(), strict=True):
            reader = readers[source]
            if sample == PADDING or not isinstance(reader.source, ShardSource | JoinedSource):
                continue
            pieces = reader.source.pieces(sample, reader.wanted)
            is_all = is_all and pieces is not None
            yield from pieces or ()
        if is_all:
            done.add(rows.number)
