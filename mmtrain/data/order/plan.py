"""The data order as a pure function: which sample is number n of epoch e, asked in any order.

Nothing is remembered, so a resumed run, any number of workers and any number of ranks see the same
order. Shards are permuted; groups of them in that order are permuted sample by sample, each group
when it is first asked for. So a rank reads from a few shards at a time, and 400 million samples
cost no more to seek in than one group.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mmtrain.data.order.randomness import permutation

PADDING = -1
"""Stands for the position and the sample of a row that only fills up a last batch."""

PIECE = 4096
"""Samples that are shuffled together, times data.shuffle_group, where there are no shards."""

_MAX_EPOCHS = 2
_MAX_GROUPS = 2


def even_pieces(num_samples: int) -> list[int]:
    """Sizes of the pieces that samples without shards are cut into."""
    full, rest = divmod(num_samples, PIECE)
    return [PIECE] * full + [rest] * (rest > 0)


@dataclass(frozen=True)
class _Order:
    """The shards of an epoch in order, and the groups that they are cut into."""

    shards: np.ndarray
    shard_starts: np.ndarray
    """The place of each one's first sample."""
    members: np.ndarray
    """[groups, 2], its first shard in this order and the one behind its last."""
    places: np.ndarray
    """[groups, 2], likewise. A shard that two lanes share is in a group of each."""


class EpochPlan:
    """The order of each epoch's samples; every sample is in it exactly once.

    A *place* counts through an epoch's order. Each of L lanes holds a contiguous part of the shards
    in that order. Where the samples do not divide, another lane has one more from epoch to epoch,
    so that after L epochs all have given equally many.

    Args:
        shard_sizes: samples of each shard; a sample's number counts through them.
        seed: the run's seed.
        shuffle: False keeps the order of the shards in every epoch.
        shuffle_group: shards whose samples are mixed with each other, inside a lane.
        lanes: how many parts of like size are read side by side.
        name: of the data where a run has several: each has an order of its own.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        shuffle: bool = True,
        shuffle_group: int = 32,
        lanes: int = 1,
        name: str = "",
    ):
        assert shuffle_group >= 1 and lanes >= 1
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.num_samples = int(self._sizes.sum())
        self.lanes = lanes
        self._seed, self._shuffle, self._shuffle_group = seed, shuffle, shuffle_group
        self._prefix = f"{name}: " if name else ""
        self._epochs: OrderedDict[Hashable, _Order] = OrderedDict()
        self._groups: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def lane_bounds(self, epoch: int) -> np.ndarray:
        """Where each lane begins in an epoch, and behind the last the end: int64 [lanes + 1]."""
        ends = np.arange(self.lanes + 1, dtype=np.int64) * self.num_samples
        return (ends + epoch % self.lanes) // self.lanes

    def lane_counts(self, lane: int) -> np.ndarray:
        """Samples that a lane gives in the first 0 to `lanes` epochs, int64 [lanes + 1]."""
        epochs = np.arange(self.lanes + 1, dtype=np.int64)

        def before(bound: int) -> np.ndarray:
            # Of the bounds above, the sum: they are one more in the last `rest` epochs.
            whole, rest = divmod(bound * self.num_samples, self.lanes)
            return epochs * whole + np.maximum(epochs - (self.lanes - rest), 0)

        return before(lane + 1) - before(lane)

    def given(self, lane: int, epochs: int) -> int:
        """Samples that a lane gives in so many epochs."""
        cycles, rest = divmod(epochs, self.lanes)
        return cycles * self.num_samples + int(self.lane_counts(lane)[rest])

    def locate(self, lane: int, number_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Epochs and places of a lane's samples, counted over all epochs."""
        counts = self.lane_counts(lane)
        cycle_B, number_B = np.divmod(number_B, self.num_samples)
        epoch_B = np.searchsorted(counts, number_B, side="right") - 1
        bounds = np.arange(self.lanes, dtype=np.int64) + lane * self.num_samples
        place_B = (bounds // self.lanes)[epoch_B] + number_B - counts[epoch_B]
        return cycle_B * self.lanes + epoch_B, place_B

    def sample(self, epoch: int, place: int) -> int:
        """The sample at one place of an epoch."""
        return int(self.samples(epoch, np.array([place]))[0])

    def samples(self, epoch: int, place_B: np.ndarray) -> np.ndarray:
        """The samples at some places of an epoch, int64 [B]; padding stays padding."""
        sample_B = np.array(place_B, dtype=np.int64)
        real_B = sample_B != PADDING
        assert bool(np.all((sample_B[real_B] >= 0) & (sample_B[real_B] < self.num_samples)))
        if not self._shuffle:
            return sample_B
        group_B = self._groups_at(epoch, sample_B)
        for group in np.unique(group_B[real_B]).tolist():
            order, first = self._group(epoch, group)
            rows = real_B & (group_B == group)
            sample_B[rows] = order[sample_B[rows] - first]
        return sample_B

    def others(self, epoch: int, place: int, draws: Sequence[float]) -> list[int]:
        """Samples to take instead of a bad one, as the draws say: the first half of them from the
        shards that are open anyway, then, should all of these be bad, from all."""
        near: list[int] = []
        if self._shuffle:
            order, _ = self._group(epoch, int(self._groups_at(epoch, np.array([place]))[0]))
            near = [int(order[int(draw * order.size)]) for draw in draws[: len(draws) // 2]]
        return near + [int(draw * self.num_samples) for draw in draws[len(near) :]]

    def shards_from(self, epoch: int, place: int) -> list[int]:
        """All shards by when they are wanted next, from one place on and of all lanes as far.

        Those that this epoch wants no more are wanted in the one behind.
        """
        if not self._shuffle:
            return [*range(self._sizes.size)]
        order = self._epoch(epoch)
        bounds = self.lane_bounds(epoch)
        inside = place - int(bounds[np.searchsorted(bounds, place, side="right") - 1])
        distance: dict[int, int] = {}
        for low, high in pairwise(bounds.tolist()):
            if low + inside >= high:
                continue
            group = int(self._groups_at(epoch, np.array([low + inside]))[0])
            first = int(order.members[group, 0])
            last = int(np.searchsorted(order.shard_starts, high, side="left"))
            for far, shard in enumerate(order.shards[first:last].tolist()):
                distance[shard] = min(far, distance.get(shard, far))
        behind = self._epoch(epoch + 1).shards.tolist()
        coming = sorted(distance, key=distance.__getitem__)
        return [*coming, *(shard for shard in behind if shard not in distance)]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_epochs": OrderedDict(), "_groups": OrderedDict()}

    def _groups_at(self, epoch: int, place_B: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._epoch(epoch).places[:, 1], place_B, side="right")

    def _epoch(self, epoch: int) -> _Order:
        if epoch not in self._epochs:
            shards = self._permutation(epoch, "shuffle shards", self._sizes.size)
            _remember(self._epochs, epoch, self._cut(shards, epoch), _MAX_EPOCHS)
        return self._epochs[epoch]

    def _cut(self, shards: np.ndarray, epoch: int) -> _Order:
        """Groups of so many shards from the start of every lane."""
        ends = np.cumsum(self._sizes[shards])
        starts = ends - self._sizes[shards]
        members, places = [], []
        for low, high in pairwise(self.lane_bounds(epoch).tolist()):
            first = int(np.searchsorted(ends, low, side="right")) if low else 0
            last = int(np.searchsorted(starts, high, side="left"))
            firsts = np.arange(first, last, self._shuffle_group)
            lasts = np.minimum(firsts + self._shuffle_group, last)
            members.append(np.stack([firsts, lasts], axis=1))
            bounds = np.maximum(starts[firsts], low), np.minimum(ends[lasts - 1], high)
            places.append(np.stack(bounds, axis=1))
        return _Order(shards, starts, np.concatenate(members), np.concatenate(places))

    def _group(self, epoch: int, group: int) -> tuple[np.ndarray, int]:
        """The samples of one group in this epoch's order, and the place of the first."""
        order = self._epoch(epoch)
        low, high = order.places[group].tolist()
        name = (epoch, group)
        if name not in self._groups:
            samples = []
            for number in range(*order.members[group].tolist()):
                shard, start = order.shards[number], int(order.shard_starts[number])
                inside = np.arange(max(low - start, 0), min(high - start, int(self._sizes[shard])))
                samples.append(inside + self._starts[shard])
            mixed = np.concatenate(samples)
            mixed = mixed[self._permutation(epoch, f"shuffle group {group}", mixed.size)]
            if self.num_samples <= np.iinfo(np.int32).max:
                mixed = mixed.astype(np.int32)  # half the memory, of each worker
            _remember(self._groups, name, mixed, max(_MAX_GROUPS, 2 * self.lanes))
        return self._groups[name], low

    def _permutation(self, epoch: int, purpose: str, size: int) -> np.ndarray:
        """Counter-based, and so the same with every version of every library."""
        purpose = f"{self._prefix}{purpose}"
        return permutation(size, seed=self._seed, epoch=epoch, purpose=purpose)


def _remember(cache: OrderedDict[Hashable, Any], name: Hashable, value: Any, size: int) -> None:
    while len(cache) >= size:
        cache.popitem(last=False)
    cache[name] = value
