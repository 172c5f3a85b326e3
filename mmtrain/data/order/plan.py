"""The data order as a pure function: which sample is number n of epoch e, asked in any order.

Nothing is remembered, so a resumed run, any number of workers and any number of ranks see the same
order. Shards are permuted; groups of them in that order are permuted sample by sample, each group
when it is first asked for. So a rank reads from a few shards at a time, and 400 million samples
cost no more to seek in than one group.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmtrain.data.order.randomness import uniform
from mmtrain.errors import UsageError

Last = Literal["drop", "mask"]

PADDING = -1
"""Stands for the position and the sample of a row that only fills up a last batch."""

PIECE = 4096
"""Samples that are shuffled together, times data.shuffle_group, where there are no shards."""

_MAX_EPOCHS = 2
_MAX_GROUPS = 4


def even_pieces(num_samples: int) -> list[int]:
    """Sizes of the pieces that samples without shards are cut into."""
    full, rest = divmod(num_samples, PIECE)
    return [PIECE] * full + [rest] * (rest > 0)


class EpochPlan:
    """The order of each epoch's samples; every sample is in it exactly once.

    Args:
        shard_sizes: samples of each shard; a sample's number counts through them.
        seed: the run's seed.
        shuffle: False keeps the order of the shards in every epoch.
        shuffle_group: shards whose samples are mixed with each other.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        shuffle: bool = True,
        shuffle_group: int = 32,
    ):
        assert shuffle_group >= 1
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.num_samples = int(self._sizes.sum())
        self._seed, self._shuffle, self._shuffle_group = seed, shuffle, shuffle_group
        self._epochs: OrderedDict[Hashable, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._groups: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def sample(self, epoch: int, position: int) -> int:
        """The sample at one position of an epoch."""
        return int(self.samples(epoch, np.array([position]))[0])

    def samples(self, epoch: int, position_B: np.ndarray) -> np.ndarray:
        """The samples at some positions of an epoch, int64 [B]; padding stays padding."""
        sample_B = np.array(position_B, dtype=np.int64)
        real_B = sample_B != PADDING
        assert bool(np.all((sample_B[real_B] >= 0) & (sample_B[real_B] < self.num_samples)))
        if not self._shuffle:
            return sample_B
        shards, group_ends = self._epoch(epoch)
        group_B = np.searchsorted(group_ends, sample_B, side="right")
        for group in np.unique(group_B[real_B]).tolist():
            order = self._group(epoch, group, shards)
            rows = real_B & (group_B == group)
            sample_B[rows] = order[sample_B[rows] - (int(group_ends[group]) - order.size)]
        return sample_B

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_epochs": OrderedDict(), "_groups": OrderedDict()}

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in this epoch's order, and where each group of them ends."""
        if epoch not in self._epochs:
            shards = self._permutation(epoch, "shuffle shards", self._sizes.size)
            ends = np.cumsum(self._sizes[shards])
            last = np.arange(self._shuffle_group, ends.size + self._shuffle_group)
            group_ends = ends[np.minimum(last[:: self._shuffle_group], ends.size) - 1]
            _remember(self._epochs, epoch, (shards, group_ends), _MAX_EPOCHS)
        return self._epochs[epoch]

    def _group(self, epoch: int, group: int, shards: np.ndarray) -> np.ndarray:
        """The samples of one group of shards in this epoch's order."""
        name = (epoch, group)
        if name not in self._groups:
            members = shards[group * self._shuffle_group : (group + 1) * self._shuffle_group]
            samples = np.concatenate(
                [np.arange(int(self._sizes[s])) + self._starts[s] for s in members]
            )
            order = self._permutation(epoch, f"shuffle group {group}", samples.size)
            _remember(self._groups, name, samples[order], _MAX_GROUPS)
        return self._groups[name]

    def _permutation(self, epoch: int, purpose: str, size: int) -> np.ndarray:
        """Counter-based, and so the same with every version of every library."""
        draws = uniform(
            seed=self._seed, epoch=epoch, position_B=range(size), purpose=purpose, num=1
        )
        return np.argsort(draws[:, 0].numpy(), kind="stable")


def _remember(cache: OrderedDict[Hashable, Any], name: Hashable, value: Any, size: int) -> None:
    while len(cache) >= size:
        cache.popitem(last=False)
    cache[name] = value


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What one data-parallel rank holds of one global batch."""

    epoch: int
    """The batch's epoch; a batch never spans two."""
    position_B: np.ndarray
    """int64, positions inside the epoch; `PADDING` on rows that fill up a last batch."""
    sample_B: np.ndarray
    """int64, the samples there; `PADDING` likewise."""


class BatchPlan:
    """Cuts the epochs into global batches and each of these into contiguous slices, one a rank.

    Batch b of an epoch is its rows [b * batch_size, (b + 1) * batch_size); rank r of R holds the
    r-th of R equal slices of them. So features gathered in the order of ranks are in global order.

    Args:
        plan: the order of samples.
        batch_size: rows of a *global* batch.
        last: what becomes of rows that fill no whole batch: dropped (another part of the data in
            every epoch, if it is shuffled), or a last batch padded with masked rows.
        rank: this data-parallel rank.
        world_size: data-parallel ranks.

    Raises:
        UsageError: the batch does not divide by the ranks, or the data fill none.
    """

    def __init__(
        self,
        plan: EpochPlan,
        *,
        batch_size: int,
        last: Last = "drop",
        rank: int = 0,
        world_size: int = 1,
    ):
        assert 0 <= rank < world_size
        if batch_size % world_size:
            raise UsageError(
                f"train.batch_size = {batch_size} must be a multiple of the {world_size} "
                f"data-parallel ranks; use {-(-batch_size // world_size) * world_size}"
            )
        if last == "drop" and batch_size > plan.num_samples:
            raise UsageError(
                f"train.batch_size = {batch_size} is larger than the data "
                f"({plan.num_samples} samples); use {plan.num_samples} or less, or set "
                'data.last = "mask"'
            )
        self.plan, self.batch_size = plan, batch_size
        self.rows_per_rank = batch_size // world_size
        self._first_row = rank * self.rows_per_rank
        full, rest = divmod(plan.num_samples, batch_size)
        self.batches_per_epoch = full + (last == "mask" and rest > 0)

    def rows(self, batch_number: int) -> Rows:
        """This rank's rows of a batch, counted over the whole run."""
        epoch, batch = divmod(batch_number, self.batches_per_epoch)
        first = batch * self.batch_size + self._first_row
        position_B = np.arange(first, first + self.rows_per_rank)
        position_B[position_B >= self.plan.num_samples] = PADDING
        return Rows(
            epoch=epoch,
            position_B=position_B,
            sample_B=self.plan.samples(epoch, position_B),
        )
