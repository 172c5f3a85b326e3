"""Which rows of the order a batch holds, and which of these a rank."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from mmtrain.data.order.batch_sizes import BatchSizes, SizedBatches, batch_sizes
from mmtrain.data.order.plan import PADDING, EpochPlan
from mmtrain.data.order.stretches import Last, Stretch, batches_in
from mmtrain.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What one data-parallel rank holds of one global batch."""

    number: int
    """The batch's, counted over the whole run."""
    epoch: int
    """The batch's epoch; a batch never spans two. A mixture is one long epoch."""
    position_B: np.ndarray
    """int64, positions inside the epoch, which key what is drawn for a row; `PADDING` on rows that
    fill up a last batch."""
    sample_B: np.ndarray
    """int64, the samples there, by their numbers in their source; `PADDING` likewise."""
    source_B: np.ndarray
    """int64, which of a mixture's sources each is of; else 0."""
    source_epoch_B: np.ndarray
    """int64, that source's own epoch."""
    place_B: np.ndarray
    """int64, the place in the source's order; `PADDING` likewise."""


class RowPlan(Protocol):
    """Which samples a batch holds: of one source, or of a mixture."""

    @property
    def batch_size(self) -> int:
        """Rows of the first *global* batch."""
        ...

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of an epoch."""
        ...

    def rows(self, batch_number: int) -> Rows:
        """This rank's rows of a batch, counted over the whole run."""
        ...

    def samples_in(self, batch_number: int) -> int:
        """Real samples of a global batch; the last one may be padded."""
        ...

    def others(self, rows: Rows, row: int, draws: Sequence[float]) -> Iterator[int]:
        """Samples of the row's source to take instead of a bad one, as the draws say."""
        ...

    def coming(self, rows: Rows, row: int) -> np.ndarray:
        """The shards of the row's source by when they are wanted next, int64."""
        ...

    def epochs_done(self, batches: int) -> list[int]:
        """Epochs of each source that are over after so many batches."""
        ...

    def left_out(self, source: int, epoch: int) -> np.ndarray:
        """Samples that fill no batch of an epoch that is over, int64."""
        ...

    def ahead(self, rows: Rows, source: int, *, last: Rows) -> np.ndarray:
        """The shards of a source in a batch that this rank reads from there on, up to the rows
        that it reads last: int64, those that are wanted soonest first."""
        ...


def rows_of_rank(batch: SizedBatches, *, rank: int, world_size: int) -> np.ndarray:
    """The r-th of R equal slices of a batch's rows, so that features gathered in the order of ranks
    are in global order.

    Raises:
        UsageError: the batch does not divide by the ranks.
    """
    assert 0 <= rank < world_size
    if batch.batch_size % world_size:
        raise UsageError(
            f"{batch} must be a multiple of the {world_size} "
            f"data-parallel ranks; use {-(-batch.batch_size // world_size) * world_size}"
        )
    size = batch.batch_size // world_size
    return np.arange(rank * size, (rank + 1) * size)


def rows_per_lane(batch: SizedBatches, lanes: int) -> int:
    """Rows of a batch that each lane gives.

    Raises:
        UsageError: the batch does not divide by the lanes.
    """
    size = batch.batch_size
    if size % lanes:
        works = [n for n in range(1, size + 1) if size % n == 0]
        nearest = ", ".join(map(str, sorted(works, key=lambda n: abs(n - lanes))[:4]))
        raise UsageError(
            f"data.lanes = {lanes} must divide {batch}: each lane gives a "
            f"batch equally many rows; use one of {nearest}"
        )
    return size // lanes


class BatchPlan:
    """Cuts the epochs into global batches and each of these into contiguous slices, one a rank.

    The batches of an epoch take its rows one after another; of one size, batch b has its rows
    [b * batch_size, (b + 1) * batch_size). Of these the l-th of L equal slices are the next ones of
    lane l. So ranks that divide the lanes own whole ones, and the batches are the same for any
    number of ranks. Where the size changes, the order of samples goes on: rows that fill no batch
    of an epoch are those of the size at its end.

    Args:
        plan: the order of samples, with its lanes.
        batch_size: rows of a *global* batch, or of each of them.
        last: what becomes of rows that fill no whole batch: dropped (another part of the data in
            every epoch, if it is shuffled), or a last batch padded with masked rows.
        rank: this data-parallel rank.
        world_size: data-parallel ranks.

    Raises:
        UsageError: the batch does not divide by the ranks or lanes, or the data fill none.
    """

    def __init__(
        self,
        plan: EpochPlan,
        *,
        batch_size: int | BatchSizes,
        last: Last = "drop",
        rank: int = 0,
        world_size: int = 1,
    ):
        self.plan, self.sizes = plan, batch_sizes(batch_size)
        self._last: Last = last
        self._stretches: list[Stretch] = []
        epoch = start = 0
        for part in self.sizes.parts:
            if self._stretches:
                epoch, start = self._stretches[-1].locate(part.first)
            row_B = rows_of_rank(part, rank=rank, world_size=world_size)
            self._stretches.append(self._stretch(part, row_B, epoch=epoch, start=start))
        self.batches_per_epoch = self._stretches[0].per_epoch

    def _stretch(self, part: SizedBatches, row_B: np.ndarray, *, epoch: int, start: int) -> Stretch:
        num_samples, size = self.plan.num_samples, part.batch_size
        if self._last == "drop" and size > num_samples:
            raise UsageError(
                f"{part} is larger than the data "
                f"({num_samples} samples); use {num_samples} or less, or set "
                'data.last = "mask"'
            )
        return Stretch(
            first=part.first,
            epoch=epoch,
            start=start,
            batch_size=size,
            row_B=row_B,
            per_lane=rows_per_lane(part, self.plan.lanes),
            in_first=batches_in(num_samples - start, size, last=self._last),
            per_epoch=batches_in(num_samples, size, last=self._last),
        )

    @property
    def batch_size(self) -> int:
        """Rows of the first global batch."""
        return self.sizes.size(0)

    def _locate(self, batch_number: int) -> tuple[Stretch, int, int]:
        """A batch's stretch, epoch, and the rows of the epoch before it."""
        stretch = self._stretches[self.sizes.part(batch_number)]
        return stretch, *stretch.locate(batch_number)

    def rows(self, batch_number: int) -> Rows:
        """This rank's rows of a batch, counted over the whole run."""
        stretch, epoch, start = self._locate(batch_number)
        lane_B, inside_B = np.divmod(stretch.row_B, stretch.per_lane)
        number_B = start // self.plan.lanes + inside_B
        bounds = self.plan.lane_bounds(epoch)
        place_B = bounds[lane_B] + number_B
        real_B = place_B < bounds[lane_B + 1]
        place_B = np.where(real_B, place_B, PADDING)
        return Rows(
            number=batch_number,
            epoch=epoch,
            position_B=np.where(real_B, start + stretch.row_B, PADDING),
            sample_B=self.plan.samples(epoch, place_B),
            source_B=np.zeros_like(place_B),
            source_epoch_B=np.full_like(place_B, epoch),
            place_B=place_B,
        )

    def samples_in(self, batch_number: int) -> int:
        """Real samples of a global batch; the last one of an epoch may be padded."""
        stretch, _, start = self._locate(batch_number)
        return min(stretch.batch_size, self.plan.num_samples - start)

    def others(self, rows: Rows, row: int, draws: Sequence[float]) -> Iterator[int]:
        """Samples to take instead of a bad one, as the draws say."""
        return self.plan.others(rows.epoch, int(rows.place_B[row]), draws)

    def coming(self, rows: Rows, row: int) -> np.ndarray:
        """The shards by when they are wanted next."""
        return self.plan.shards_from(rows.epoch, int(rows.place_B[row]))

    def epochs_done(self, batches: int) -> list[int]:
        """Epochs that are over after so many batches."""
        return [self._locate(batches)[1]]

    def left_out(self, source: int, epoch: int) -> np.ndarray:
        """Samples that fill no batch of an epoch, int64."""
        begun = [stretch for stretch in self._stretches if stretch.epoch <= epoch]
        bounds, taken = self.plan.lane_bounds(epoch), begun[-1].taken(epoch) // self.plan.lanes
        rests = [np.arange(low + taken, high) for low, high in pairwise(bounds.tolist())]
        return self.plan.samples(epoch, np.concatenate(rests))

    def ahead(self, rows: Rows, source: int, *, last: Rows) -> np.ndarray:
        """The shards that this rank reads from there on."""
        bounds = self.plan.lane_bounds(last.epoch).tolist()
        # A lane that is not in a padded last batch has come to its end.
        ends = [end - 1 for end in bounds[1:]]
        last_B = last.place_B[last.place_B != PADDING]
        for lane, place in zip(
            self.plan.lanes_at(last.epoch, last_B).tolist(), last_B.tolist(), strict=True
        ):
            ends[lane] = place
        found = {lane: (last.epoch, place) for lane, place in enumerate(ends)}
        return shards_ahead(self.plan, rows, source, found)


def shards_ahead(
    plan: EpochPlan, rows: Rows, source: int, last: Mapping[int, tuple[int, int]]
) -> np.ndarray:
    """Those of one source that a rank reads from some rows on; see `EpochPlan.shards_ahead`."""
    own_B = (rows.source_B == source) & (rows.place_B != PADDING)
    if not own_B.any():
        return np.zeros(0, dtype=np.int64)
    epoch = int(rows.source_epoch_B[own_B].min())
    place_B = rows.place_B[own_B & (rows.source_epoch_B == epoch)]
    return plan.shards_ahead(epoch, place_B, last=last)
