"""Indexes that a process keeps, whatever files it has open: those last used, bounded in bytes."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np

from mmtrain.data.shards.index import ShardIndex
from mmtrain.data.shards.opened import Shard

_MOST_BYTES = 1 << 28
_MOST = 2048
_PLACES = ("offset_M", "size_M", "key_end_S", "member_end_S")


@dataclass(frozen=True)
class Kept:
    """A shard with its index."""

    shard: Shard
    index: ShardIndex


class KeptIndexes:
    """Shards by their numbers, for any number of threads; those of a catalogue weigh nothing, since
    their pages are shared."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Kept] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def get(self, number: int) -> Kept | None:
        """A shard that is kept."""
        with self._lock:
            found = self._kept.get(number)
            if found is not None:
                self._kept.move_to_end(number)
            return found

    def put(self, number: int, shard: Shard, index: ShardIndex) -> Kept:
        """Keep a shard, unless another thread was as fast; those that were used longest ago make
        room."""
        kept = Kept(shard, index if shard.catalogue is not None else _narrow(index))
        with self._lock:
            if number in self._kept:
                return self._kept[number]
            self._kept[number] = kept
            self._num_bytes += _weight(kept)
            while len(self._kept) > 1 and self._is_full():
                self._num_bytes -= _weight(self._kept.popitem(last=False)[1])
        return kept

    def _is_full(self) -> bool:
        return len(self._kept) > _MOST or self._num_bytes > _MOST_BYTES


def _narrow(index: ShardIndex) -> ShardIndex:
    """The same in half the memory, where the shard is small enough."""
    if index.summary.shard_bytes >= 1 << 32:
        return index
    return replace(index, **{name: getattr(index, name).astype(np.uint32) for name in _PLACES})


def _weight(kept: Kept) -> int:
    if kept.shard.catalogue is not None:
        return 0
    return sum(each.nbytes for each in vars(kept.index).values() if isinstance(each, np.ndarray))
