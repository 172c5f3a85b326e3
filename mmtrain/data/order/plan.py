"""The data order as a pure function: which sample is number n of epoch e, asked in any order.

Nothing is remembered, so a resumed run, any number of workers and any number of ranks see the same
order. Shards are permuted; groups of them in that order are permuted sample by sample, each group
when it is first asked for, and a large one in pieces. So a rank reads from a few shards at a time,
and 400 million samples cost no more to seek in than one piece.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from mmtrain.data.order.permutation import MOST_SHUFFLED, Permutation, permutation

PADDING = -1
"""Stands for the position and the sample of a row that only fills up a last batch."""

PIECE = 4096
"""Samples that are shuffled together, times data.shuffle_group, where there are no shards."""

_MAX_EPOCHS = 2
_LEAST_SHUFFLED = 1 << 18
"""Numbers in a piece of a large group, however many lanes keep one."""


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


@dataclass(frozen=True)
class _Group:
    """Shards, or parts of them, whose samples are mixed: they are numbered through them."""

    first_place: int
    """In the epoch's order."""
    order: Permutation
    """Of its numbers."""
    ends: np.ndarray
    """The number behind each shard's last."""
    shifts: np.ndarray
    """What a number in each shard lacks to be a sample's."""

    def samples(self, number_B: np.ndarray) -> np.ndarray:
        """The samples of some numbers."""
        return number_B + self.shifts[np.searchsorted(self.ends, number_B, side="right")]


class _Piece(NamedTuple):
    name: Hashable
    """Its epoch, group and number there."""
    mixed: np.ndarray
    """The group's numbers in order."""
    first: int
    """The place in the group of the first of them."""


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
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()
        self._pieces: dict[int, _Piece] = {}

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
        for number in np.unique(group_B[real_B]).tolist():
            group = self._group(epoch, number)
            rows = np.flatnonzero(real_B & (group_B == number))
            place_N = sample_B[rows] - group.first_place
            piece_N = group.order.pieces_at(place_N)
            for piece in np.unique(piece_N).tolist():
                found = self._piece(group, epoch, number, piece)
                own = piece_N == piece
                sample_B[rows[own]] = group.samples(found.mixed[place_N[own] - found.first])
        return sample_B

    def others(self, epoch: int, place: int, draws: Sequence[float]) -> Iterator[int]:
        """Samples to take instead of a bad one, as the draws say: the first half of them from the
        shards that are open anyway, then, should all of these be bad, from all.

        Each is found when it is asked for.
        """
        near = len(draws) // 2 if self._shuffle else 0
        for draw in draws[:near]:
            number = int(self._groups_at(epoch, np.array([place]))[0])
            group = self._group(epoch, number)
            other = self._number(group, epoch, number, int(draw * group.order.size))
            yield int(group.samples(np.array([other]))[0])
        yield from (int(draw * self.num_samples) for draw in draws[near:])

    def shards_from(self, epoch: int, place: int) -> np.ndarray:
        """All shards by when they are wanted next, from one place on and of all lanes as far.

        Those that this epoch wants no more are wanted in the one behind.

        Returns:
            Their numbers, int64.
        """
        if not self._shuffle:
            return np.arange(self._sizes.size)
        bounds = self.lane_bounds(epoch)
        inside = place - int(bounds[self.lanes_at(epoch, place)])
        lanes = [
            self._shards_between(epoch, low + inside, high)
            for low, high in pairwise(bounds.tolist())
            if low + inside < high
        ]
        return _soonest([_in_turn(lanes), self._epoch(epoch + 1).shards])

    def shards_ahead(
        self, epoch: int, place_B: np.ndarray, *, last: Mapping[int, tuple[int, int]] | None = None
    ) -> np.ndarray:
        """The shards that the lanes of some places read from there on, in this epoch and the next.

        Args:
            epoch: of the places.
            place_B: where reading is, int64; at least one.
            last: of each lane, epoch and place of the last sample that is read at all; None: not
                known.

        Returns:
            Their numbers, those that are wanted soonest first, int64.
        """
        if not self._shuffle:
            first = int(np.searchsorted(self._starts, place_B.min(), side="right")) - 1
            return np.arange(first, self._sizes.size)
        own_B, parts = self.lanes_at(epoch, place_B), []
        for each in (epoch, epoch + 1):
            bounds, lanes = self.lane_bounds(each).tolist(), []
            for lane in np.unique(own_B).tolist():
                at = int(place_B[own_B == lane].min()) if each == epoch else bounds[lane]
                end_epoch, end = (each, bounds[lane + 1] - 1) if last is None else last[lane]
                stop = end + 1 if each == end_epoch else bounds[lane + 1]
                if each <= end_epoch and at < stop:
                    lanes.append(self._shards_between(each, at, stop))
            parts.append(_in_turn(lanes))
        return _soonest(parts)

    def lanes_at(self, epoch: int, place: int | np.ndarray) -> Any:
        """The lanes that places of an epoch are in."""
        return np.searchsorted(self.lane_bounds(epoch), place, side="right") - 1

    def _shards_between(self, epoch: int, first: int, stop: int) -> np.ndarray:
        """The shards that hold the places of a lane from `first` up to `stop`, in order."""
        order = self._epoch(epoch)
        groups = self._groups_at(epoch, np.array([first, stop - 1]))
        return order.shards[order.members[groups[0], 0] : order.members[groups[1], 1]]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_epochs": OrderedDict(),
            "_groups": OrderedDict(),
            "_pieces": {},
        }

    def _groups_at(self, epoch: int, place_B: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._epoch(epoch).places[:, 1], place_B, side="right")

    def _epoch(self, epoch: int) -> _Order:
        order = self._epochs.get(epoch)
        if order is None:
            shards = permutation(self._sizes.size, **self._key(epoch, "shuffle shards"))
            order = self._cut(shards, epoch)
            _remember(self._epochs, epoch, order, _MAX_EPOCHS)
        return order

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

    def _group(self, epoch: int, number: int) -> _Group:
        group = self._groups.get((epoch, number))
        if group is None:
            order = self._epoch(epoch)
            low, high = order.places[number].tolist()
            shards = order.shards[slice(*order.members[number].tolist())]
            starts = order.shard_starts[slice(*order.members[number].tolist())]
            # A lane may begin and end inside a shard.
            firsts = np.maximum(low - starts, 0)
            lasts = np.minimum(high - starts, self._sizes[shards])
            ends = np.cumsum(lasts - firsts)
            group = _Group(
                first_place=low,
                order=Permutation(
                    high - low,
                    **self._key(epoch, f"shuffle group {number}"),
                    most=max(_LEAST_SHUFFLED, MOST_SHUFFLED // self.lanes),
                ),
                ends=ends,
                shifts=self._starts[shards] + lasts - ends,
            )
            _remember(self._groups, (epoch, number), group, max(2, 2 * self.lanes))
        return group

    def _piece(self, group: _Group, epoch: int, number: int, piece: int) -> _Piece:
        """A piece of a group's order; each lane keeps the last one that it came to."""
        name, bounds = (epoch, number, piece), self.lane_bounds(epoch)
        lane = int(np.searchsorted(bounds, group.first_place, side="right"))
        kept = self._pieces.get(lane)
        if kept is None or kept.name != name:
            self._pieces.pop(lane, None)  # makes room
            self._pieces[lane] = kept = _Piece(name, *group.order.piece(piece))
        return kept

    def _number(self, group: _Group, epoch: int, number: int, place: int) -> int:
        """One of a group's numbers, from anywhere."""
        name = (epoch, number, int(group.order.pieces_at(np.array([place]))[0]))
        for kept in list(self._pieces.values()):
            if kept.name == name:
                return int(kept.mixed[place - kept.first])
        return group.order.at(place)

    def _key(self, epoch: int, purpose: str) -> dict[str, Any]:
        """Counter-based, and so the same with every version of every library."""
        return {"seed": self._seed, "epoch": epoch, "purpose": f"{self._prefix}{purpose}"}


def _remember(cache: OrderedDict[Hashable, Any], name: Hashable, value: Any, size: int) -> None:
    """For the next time; a thread beside, which looks ahead, may drive it out again at once."""
    while len(cache) >= size:
        cache.popitem(last=False)
    cache[name] = value


def _in_turn(lanes: list[np.ndarray]) -> np.ndarray:
    """The shards of lanes that are read side by side: the first of each, the second ..."""
    if not lanes:
        return np.zeros(0, dtype=np.int64)
    distance = np.concatenate([np.arange(shards.size) for shards in lanes])
    return np.concatenate(lanes)[np.argsort(distance, kind="stable")]


def _soonest(parts: list[np.ndarray]) -> np.ndarray:
    """Each shard once, where it comes first, int64."""
    shards = np.concatenate(parts)
    _, first_S = np.unique(shards, return_index=True)
    return shards[np.sort(first_S)].astype(np.int64)
