"""Batches of several sources by weight, as the batches of one are: a function of their number."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np

from mmtrain.data.order.batch_sizes import BatchSizes, batch_sizes
from mmtrain.data.order.batches import Rows, rows_of_rank, rows_per_lane, shards_ahead
from mmtrain.data.order.plan import PADDING, EpochPlan
from mmtrain.data.order.stream import MixtureEnd, Stream, Weights
from mmtrain.data.order.stretches import Last
from mmtrain.errors import UsageError

_MOST_SAMPLES = 1 << 62

MixtureBatches = Literal["mixed", "single"]


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """One source of a mixture."""

    name: str
    plan: EpochPlan
    max_epochs: int | None
    """None: without end."""


class MixturePlan:
    """Deals the batches of a mixture; as `BatchPlan`, with whose lanes and ranks it shares.

    Each source goes through epochs of its own, with every sample once in each. A batch may hold the
    end of one and the beginning of the next. Each lane is a stream of its own, which begins
    elsewhere in the cycle of its shares; in a lane any 1,000 rows hold what `Shares` promises.

    Args:
        sources: all with the same lanes.
        schedule: the sources' weights from a step on, from 0, rising.
        end: what becomes of the mixture when a source has done its epochs.
        batches: whether a batch is of all sources or of a single one.
        batch_size: rows of a *global* batch, or of each of them.
        last: of the rows at the end of a mixture that fill no batch.
        rank: this data-parallel rank.
        world_size: data-parallel ranks.

    Raises:
        UsageError: the batch does not divide by the ranks or lanes, or a source is too small.
    """

    def __init__(
        self,
        sources: Sequence[Mixed],
        schedule: Sequence[tuple[int, Weights]],
        *,
        end: MixtureEnd,
        batches: MixtureBatches,
        batch_size: int | BatchSizes,
        last: Last = "drop",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sources, self.sizes = sources, batch_sizes(batch_size)
        self.end: MixtureEnd = end
        self._last, self._lanes = last, sources[0].plan.lanes
        parts = self.sizes.parts
        self._parts_rows = [rows_of_rank(part, rank=rank, world_size=world_size) for part in parts]
        self._parts_per_lane = [rows_per_lane(part, self._lanes) for part in parts]
        self._is_single = batches == "single"
        self._check_sizes()
        self._streams = self._build_streams(schedule)

    @property
    def batch_size(self) -> int:
        """Rows of the first global batch."""
        return self.sizes.size(0)

    @property
    def _per_lane(self) -> int:
        """Rows that each lane gives to a batch, where all are of one size."""
        assert self.sizes.is_even
        return self._parts_per_lane[0]

    def _lane_rows(self, batches: int) -> int:
        """Rows that each lane gives to the first batches."""
        return self.sizes.rows_before(batches) // self._lanes

    def _check_sizes(self) -> None:
        if self._is_single and not self.sizes.is_even:
            first, *others = self.sizes.parts
            other = next(part for part in others if part.batch_size != first.batch_size)
            raise UsageError(
                f'data.mixture_batches = "single" deals batches of one size, not {first} and then '
                f'{other}; use "mixed", or one batch size'
            )
        for source in self.sources:
            num, key = source.plan.num_samples, f"data.mixture: {source.name}"
            if num < self._lanes:
                raise UsageError(
                    f"{key} has {num} samples, too few for data.lanes = {self._lanes}; use {num} "
                    "lanes or less"
                )
            if self._is_single and self._last == "drop" and self._limit_batches(source) == 0:
                raise UsageError(
                    f"{key} has {num * (source.max_epochs or 1)} samples in all its epochs, which "
                    f"fill no batch of its own (train.batch_size = {self.batch_size}); raise its "
                    'max_epochs, or set data.last = "mask"'
                )

    def _build_streams(self, schedule: Sequence[tuple[int, Weights]]) -> list[Stream]:
        """One of batches where these are of one source each; else one of rows for each lane."""
        if self._is_single:
            limits = [self._limit_batches(source) for source in self.sources]
            return [Stream(schedule, limits, end=self.end)]
        by_rows = [(self._lane_rows(step), weights) for step, weights in schedule]
        return [
            Stream(
                by_rows,
                [self._limit_rows(source, lane) for source in self.sources],
                end=self.end,
                turn=Fraction(lane, self._lanes),
            )
            for lane in range(self._lanes)
        ]

    def _limit_rows(self, source: Mixed, lane: int) -> int | None:
        epochs = source.max_epochs
        return None if epochs is None else source.plan.given(lane, epochs)

    def _limit_batches(self, source: Mixed) -> int | None:
        if source.max_epochs is None:
            return None
        rows = [source.plan.given(lane, source.max_epochs) for lane in range(self._lanes)]
        if self._last == "drop":
            return min(rows) // self._per_lane
        return -(-max(rows) // self._per_lane)

    @cached_property
    def num_batches(self) -> int | None:
        """Batches until the mixture ends; None: it does not."""
        ends = [stream.end for stream in self._streams if stream.end is not None]
        if not ends:
            return None
        if self._is_single:
            return ends[0]
        if self._last == "drop":
            return self.sizes.whole(min(ends) * self._lanes)
        return self.sizes.covering(max(ends) * self._lanes)

    @cached_property
    def _num_whole(self) -> float:
        """Batches from the first on that have no padding for sure."""
        if self._is_single:
            return 0 if self._last == "mask" else math.inf
        ends = [stream.end for stream in self._streams if stream.end is not None]
        return self.sizes.whole(min(ends) * self._lanes) if ends else math.inf

    @property
    def batches_per_epoch(self) -> int:
        """Batches of the whole mixture where it ends; else of as many samples as its sources have
        together."""
        if self.num_batches is not None:
            return max(1, self.num_batches)
        num_samples = sum(source.plan.num_samples for source in self.sources)
        return max(1, num_samples // self.batch_size)

    def check_length(self, steps: int, *, key: str) -> None:
        """Refuse a run that is longer than the mixture, or in which a source is never met.

        Args:
            steps: of the whole run.
            key: the setting that says so, with its value.

        Raises:
            UsageError: naming the source.
        """
        if self.num_batches is not None and steps > self.num_batches:
            raise UsageError(
                f"{key} is beyond the end of data.mixture at step {self.num_batches}, where "
                f"{self._why_it_ends()}; train for less, raise max_epochs, or set "
                'data.mixture_end = "repeat"'
            )
        if self.sizes.rows_before(steps) > _MOST_SAMPLES:
            raise UsageError(f"{key} is beyond the samples that can be counted; train for less")
        counts = zip(self.sources, self.counts(steps).tolist(), strict=True)
        if unseen := next((source for source, count in counts if not count), None):
            what = "batch" if self._is_single else "sample"
            raise UsageError(
                f"data.mixture[{unseen.name}] gets no {what} in {key}, for its weight; raise that, "
                "train for longer, or leave the source out"
            )

    def _why_it_ends(self) -> str:
        first = min(self._streams, key=lambda stream: stream.end or 0)
        if first.ended_by is None:
            return "no source has a weight"
        source = self.sources[first.ended_by]
        epochs = f"{source.max_epochs} epoch" + "s" * (source.max_epochs != 1)
        one = f"{source.name} ({source.plan.num_samples} samples) has done its {epochs}"
        return (
            one if self.end == "stop" else f"all have done their epochs, the last is {source.name}"
        )

    def samples_in(self, batch_number: int) -> int:
        """Real samples of a global batch; the last one may be padded."""
        if batch_number < self._num_whole:
            return self.sizes.size(batch_number)
        counts = self.counts(batch_number + 1) - self.counts(batch_number)
        return int(counts.sum())

    def counts(self, batches: int) -> np.ndarray:
        """Samples of each source in the first batches, int64 [sources]."""
        return np.array(self._counts_by_lane(batches), dtype=np.int64).sum(0)

    def _counts_by_lane(self, batches: int) -> list[list[int]]:
        """Samples of each source that each lane gives to the first batches."""
        if not self._is_single:
            rows = self._lane_rows(batches)
            return [stream.counts(rows).tolist() for stream in self._streams]
        given = self._streams[0].counts(batches).tolist()
        return [
            [self._single_rows(source, lane, num) for source, num in self._with(given)]
            for lane in range(self._lanes)
        ]

    def _single_rows(self, source: Mixed, lane: int, batches: int) -> int:
        limit = self._limit_rows(source, lane)
        rows = batches * self._per_lane
        return rows if limit is None else min(rows, limit)

    def rows(self, batch_number: int) -> Rows:
        """This rank's rows of a batch, counted over the whole run."""
        part = self.sizes.part(batch_number)
        lane_B, inside_B = np.divmod(self._parts_rows[part], self._parts_per_lane[part])
        source_B, number_B = np.zeros_like(lane_B), np.full_like(lane_B, PADDING)
        if self._is_single:
            (source,), (number,) = self._streams[0].locate(batch_number, 1)
            source_B[:], number_B[:] = source, number * self._per_lane + inside_B
            for row, lane in enumerate(lane_B.tolist()):
                limit = self._limit_rows(self.sources[int(source)], lane)
                if limit is not None and number_B[row] >= limit:
                    number_B[row] = PADDING
        else:
            for lane in np.unique(lane_B).tolist():
                own = np.flatnonzero(lane_B == lane)
                first = self._lane_rows(batch_number) + int(inside_B[own[0]])
                found, number = self._streams[lane].locate(first, own.size)
                source_B[own[: found.size]], number_B[own[: found.size]] = found, number
        return self._rows(batch_number, lane_B, source_B, number_B)

    def _rows(
        self, batch_number: int, lane_B: np.ndarray, source_B: np.ndarray, number_B: np.ndarray
    ) -> Rows:
        """Rows whose samples are known by their numbers in the source's lane."""
        real_B = number_B != PADDING
        epoch_B, place_B = np.zeros_like(lane_B), np.full_like(lane_B, PADDING)
        sample_B = np.full_like(lane_B, PADDING)
        for number in np.unique(source_B[real_B]).tolist():
            rows, plan = real_B & (source_B == number), self.sources[number].plan
            for lane in np.unique(lane_B[rows]).tolist():
                own = rows & (lane_B == lane)
                epoch_B[own], place_B[own] = plan.locate(lane, number_B[own])
            for epoch in np.unique(epoch_B[rows]).tolist():
                now = rows & (epoch_B == epoch)
                sample_B[now] = plan.samples(epoch, place_B[now])
        first = self.sizes.rows_before(batch_number)
        row_B = self._parts_rows[self.sizes.part(batch_number)]
        return Rows(
            number=batch_number,
            epoch=0,
            position_B=np.where(real_B, first + row_B, PADDING),
            sample_B=sample_B,
            source_B=source_B,
            source_epoch_B=epoch_B,
            place_B=place_B,
        )

    def others(self, rows: Rows, row: int, draws: Sequence[float]) -> Iterator[int]:
        """Samples of the row's source to take instead of a bad one, as the draws say."""
        plan = self.sources[int(rows.source_B[row])].plan
        return plan.others(int(rows.source_epoch_B[row]), int(rows.place_B[row]), draws)

    def ahead(self, rows: Rows, source: int, *, last: Rows) -> np.ndarray:
        """The shards of a source that this rank reads from there on."""
        plan, end = self.sources[source].plan, {}
        for lane, counts in enumerate(self._counts_by_lane(last.number + 1)):
            epoch_B, place_B = plan.locate(lane, np.array([max(0, counts[source] - 1)]))
            end[lane] = int(epoch_B[0]), int(place_B[0])
        return shards_ahead(plan, rows, source, end)

    def coming(self, rows: Rows, row: int) -> np.ndarray:
        """The shards of the row's source by when they are wanted next."""
        plan = self.sources[int(rows.source_B[row])].plan
        return plan.shards_from(int(rows.source_epoch_B[row]), int(rows.place_B[row]))

    def epochs_done(self, batches: int) -> list[int]:
        """Epochs of each source that are over after so many batches: in every lane."""
        epochs_LS = [
            [int(one.plan.locate(lane, np.array([n]))[0][0]) for one, n in self._with(counts)]
            for lane, counts in enumerate(self._counts_by_lane(batches))
        ]
        return [min(epochs) for epochs in zip(*epochs_LS, strict=True)]

    def left_out(self, source: int, epoch: int) -> np.ndarray:
        """None: batches go on from one epoch to the next."""
        return np.zeros(0, dtype=np.int64)

    def _with(self, numbers: Sequence[int]) -> Iterator[tuple[Mixed, int]]:
        return zip(self.sources, numbers, strict=True)
