"""Reading of shards by their numbers: files that stay open, indexes that stay at hand."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from mmtrain.data.shards.index import ShardIndex, build_index
from mmtrain.data.shards.index_file import is_fresh
from mmtrain.data.shards.kept import Kept, KeptIndexes
from mmtrain.data.shards.opened import Shard, Shards
from mmtrain.data.shards.opening import refuse_changed
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.file import File, Range
from mmtrain.data.storage.open import open_file, open_to_scan
from mmtrain.data.storage.patience import patiently
from mmtrain.errors import UsageError

_MAX_OPEN = 128
ReturnT = TypeVar("ReturnT")


class ShardReader:
    """Bytes and indexes of shards, for any number of threads.

    Safe to pickle and to fork: files are opened where they are read.

    Args:
        shards: as `open_shards` found them.
        verify: refuse an index without checksums.
        key: the setting that the shards came from, for messages.
        retry_seconds: how long a disk's fault is given to pass.
        cache: keeps what is read of remote shards.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        verify: bool,
        key: str,
        retry_seconds: float,
        cache: Cache | None,
    ) -> None:
        self._shards, self._verify, self._key, self._cache = shards, verify, key, cache
        self.retry_seconds, self._is_lost = retry_seconds, False
        self._lock = Lock()
        self._open: OrderedDict[int, File] = OrderedDict()
        self._indexes = KeptIndexes()
        self._is_compared = bytearray(len(shards))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict(), "_indexes": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_indexes": KeptIndexes(), "_lock": Lock()}

    def read(self, number: int, ranges: list[Range]) -> list[memoryview]:
        """The bytes of a shard's ranges.

        Raises:
            UsageError: the shard is no longer what was opened.
            OSError: it cannot be read, tried several times.
        """

        def attempt() -> list[memoryview]:
            try:
                return self._open_now(number).read_ranges(ranges)
            except OSError:
                with self._lock:
                    self._open.pop(number, None)
                raise

        pieces = self._patiently(number, attempt, f"read at byte {ranges[0][0]}")
        self._is_lost = False
        return pieces

    def index(self, number: int) -> ShardIndex:
        """Where a shard's samples are.

        Raises:
            UsageError: the shard is no longer what was opened, or its index is lost.
            OSError: it cannot be read, tried several times.
        """
        kept = self._indexes.get(number)
        if kept is None:
            kept = self._patiently(number, partial(self._keep, number), "opened")
        return kept.index

    def index_at_hand(self, number: int) -> ShardIndex | None:
        """The index of a shard that was met already."""
        kept = self._indexes.get(number)
        return None if kept is None else kept.index

    def file_at_hand(self, number: int) -> File | None:
        """The file of a shard that is open."""
        return self._open.get(number)

    def _keep(self, number: int) -> Kept:
        shard = self._shards[number]
        return self._indexes.put(number, shard, self._load(shard, number, self._open_now(number)))

    def _patiently(self, number: int, attempt: Callable[[], ReturnT], what: str) -> ReturnT:
        # A disk that stayed away is not waited for again and again, sample by sample.
        seconds = 0.0 if self._is_lost else self.retry_seconds
        try:
            # Also a file that is missing: it was there when the run began.
            return patiently(attempt, seconds=seconds, again=lambda _: True)
        except OSError as error:
            self._is_lost = True
            raise OSError(
                f"{self._shards[number].path} cannot be {what}, tried for {self.retry_seconds:g} s "
                f"(data.retry_seconds): {error.strerror or error}"
            ) from error

    def _open_now(self, number: int) -> File:
        with self._lock:
            found = self._open.get(number)
            if found is not None:
                self._open.move_to_end(number)
                return found
            while len(self._open) >= _MAX_OPEN:
                self._open.popitem(last=False)
        kept = self._indexes.get(number)
        summary = (self._shards[number] if kept is None else kept.shard).summary
        known = summary.shard_bytes, summary.version
        path = self._shards.paths[number]
        file = open_file(path, known=known, cache=self._cache)
        if (file.size, file.version) != known:
            raise UsageError(f"{path} was changed while it was in use; start again")
        with self._lock:
            # Another thread may have been as fast. Files close when nobody reads them any more.
            return self._open.setdefault(number, file)

    def _load(self, shard: Shard, number: int, file: File) -> ShardIndex:
        """The index of a shard that is read for the first time, or that was not kept."""
        if shard.catalogue is not None and not self._is_compared[number]:
            if not is_fresh(shard.summary, file):
                refuse_changed(
                    shard, 1, len(self._shards), key=self._key, seconds=self.retry_seconds
                )
            self._is_compared[number] = 1
        index = shard.load()
        if index is None and shard.catalogue is not None:
            raise UsageError(
                f"{shard.index_path} is damaged where it tells of {shard.path}; run: mmtrain data "
                f"index {shard.path}"
            )
        if index is None or index.summary.index_hash != shard.summary.index_hash:
            # Removed or made anew since the run began; what counts is the shard itself.
            with open_to_scan(file, seconds=self.retry_seconds) as whole:
                index = build_index(whole, crc=False)
        if index.summary.index_hash != shard.summary.index_hash:
            raise UsageError(f"{shard.path} was changed while it was in use; start again")
        if self._verify and not index.summary.has_crc:
            raise UsageError(f"{shard.index_path} lost its checksums while in use; start again")
        return index
