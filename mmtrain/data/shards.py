"""Shards as one list of samples: their indexes together, and reading any sample by its number."""

import hashlib
import time
import zlib
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmtrain.data.index_file import index_paths, is_fresh, keep_index, load_index, load_summary
from mmtrain.data.shard_index import Entry, IndexSummary, ShardIndex, build_index
from mmtrain.data.shard_patterns import expand_patterns
from mmtrain.data.tar_header import BLOCK, MAGIC, parse_header
from mmtrain.data.tar_scan import ShardFile
from mmtrain.errors import UsageError

OnDamage = Literal["stop", "use_rest"]

_MAX_OPEN = 128
_THREADS = 8
_MAGIC_WITHIN = 1 << 20
_RETRY_AFTER = (0.1, 1.0)
"""Seconds before a read that failed is tried again: a network disk's hiccup is no bad sample."""


class SampleError(Exception):
    """Why one sample cannot be used: a short reason that can be counted."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One indexed shard."""

    path: str
    """As the user's pattern gave it."""
    index_path: Path
    """Where its index is kept."""
    summary: IndexSummary
    """What its index says."""
    is_new: bool
    """Whether the index was made just now."""


class ShardSource:
    """All samples of some shards, in the order of the shards and of the samples inside them.

    Safe to pickle and to fork: files are opened where they are read.

    Args:
        patterns: what `expand_patterns` takes.
        index_dir: where indexes are kept; None: beside the shards, or in the user's cache folder
            where that cannot be written.
        verify: check every member against its checksum, which the index must have.
        on_damage: whether a shard with damage stops the run or the rest of it is used.
        key: the setting that `patterns` came from, for messages.

    Raises:
        UsageError: shards are missing, no tars, damaged, without samples, or without the
            checksums that `verify` needs.
    """

    def __init__(
        self,
        patterns: str | tuple[str, ...],
        *,
        index_dir: str | None = None,
        verify: bool = False,
        on_damage: OnDamage = "stop",
        key: str = "data.train",
    ):
        self.shards = open_shards(patterns, index_dir=index_dir, key=key)
        self.verify = verify
        self.shard_sizes = [shard.summary.num_samples for shard in self.shards]
        self._end_S = np.cumsum(self.shard_sizes, dtype=np.int64)
        self.num_samples = int(self._end_S[-1])
        self._open: OrderedDict[int, tuple[ShardFile, ShardIndex]] = OrderedDict()
        if on_damage == "stop":
            self._refuse_damage(key)
        if self.num_samples == 0:
            raise UsageError(f"{key} = {patterns}: the shards hold no samples; name others")
        if verify and (bare := [shard for shard in self.shards if not shard.summary.has_crc]):
            raise UsageError(
                f"data.verify = true needs checksums, which the index of {bare[0].path} has not; "
                f"run: mmtrain data index {bare[0].path}"
            )

    def _refuse_damage(self, key: str) -> None:
        damaged = [shard for shard in self.shards if shard.summary.damage]
        if damaged:
            first = damaged[0].summary.damage[0]
            raise UsageError(
                f"{key}: {len(damaged)} of {len(self.shards)} shards are damaged, the first is "
                f"{damaged[0].path} at byte {first.offset} ({first.reason}); fetch them again, or "
                'set data.on_damage = "use_rest"'
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    @property
    def fingerprint(self) -> str:
        """Changes when a shard's size, keys or layout do, or their order; not with their folder."""
        hashed = hashlib.blake2b(digest_size=16)
        for shard in self.shards:
            hashed.update(f"{shard.summary.shard_bytes} {shard.summary.index_hash}\n".encode())
        return hashed.hexdigest()

    def locate(self, sample: int) -> tuple[Shard, int]:
        """The shard of a sample and its number in there."""
        number, inside = self._locate(sample)
        return self.shards[number], inside

    def place(self, sample: int) -> str:
        """The shard that a sample is in."""
        return self.locate(sample)[0].path

    def key(self, sample: int) -> str:
        """The sample's key inside its shard."""
        number, inside = self._locate(sample)
        return self._opened(number)[1].key(inside)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The sample's files by extension, or those of them that are `wanted`.

        Raises:
            SampleError: the shard is no longer what was indexed here, or a checksum is wrong.
            OSError: the shard cannot be read, tried several times.
        """
        number, inside = self._locate(sample)
        _, index = self._opened(number)
        return {
            extension: self._read_member(number, entry)
            for extension, entry in index.members(inside).items()
            if wanted is None or extension in wanted
        }

    def _locate(self, sample: int) -> tuple[int, int]:
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"sample {sample} of {self.num_samples}")
        number = int(np.searchsorted(self._end_S, sample, side="right"))
        return number, sample - int(self._end_S[number]) + self.shard_sizes[number]

    def _read_member(self, number: int, entry: Entry) -> bytes:
        data = self._read(number, entry.offset - BLOCK, BLOCK + entry.size)
        if len(data) < BLOCK + entry.size:
            raise SampleError("shard cut since it was indexed")
        if zlib.crc32(data[:BLOCK]) != entry.header_crc:
            raise SampleError("shard changed since it was indexed")
        content = data[BLOCK:]
        if self.verify and zlib.crc32(content) != entry.crc:
            raise SampleError("checksum wrong")
        return content

    def _read(self, number: int, offset: int, count: int) -> bytes:
        for delay in (*_RETRY_AFTER, None):
            try:
                return self._opened(number)[0].read(offset, count)
            except OSError as error:
                self._close(number)
                if delay is None:
                    raise OSError(
                        f"{self.shards[number].path} cannot be read at byte {offset}: {error}"
                    ) from error
                time.sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    def _opened(self, number: int) -> tuple[ShardFile, ShardIndex]:
        found = self._open.get(number)
        if found is not None:
            self._open.move_to_end(number)
            return found
        while len(self._open) >= _MAX_OPEN:
            self._close(next(iter(self._open)))
        shard = self.shards[number]
        file = ShardFile(shard.path)
        index = load_index(shard.index_path)
        if index is None or index.summary.index_hash != shard.summary.index_hash:
            # Removed or made anew since the run began; what counts is the shard itself.
            index = build_index(file, crc=False)
        if (file.size, index.summary.index_hash) != (
            shard.summary.shard_bytes,
            shard.summary.index_hash,
        ):
            raise UsageError(f"{shard.path} was changed while it was in use; start again")
        if self.verify and not index.summary.has_crc:
            raise UsageError(f"{shard.index_path} lost its checksums while in use; start again")
        self._open[number] = file, index
        return file, index

    def _close(self, number: int) -> None:
        if number in self._open:
            self._open.pop(number)[0].close()


def open_shards(
    patterns: str | tuple[str, ...],
    *,
    index_dir: str | None = None,
    crc: bool = False,
    threads: int = _THREADS,
    key: str = "data.train",
) -> tuple[Shard, ...]:
    """Find the shards and their indexes, making those that are missing, stale or lack checksums.

    Raises:
        UsageError: a shard is missing or no tar, or an index cannot be kept.
    """
    paths = expand_patterns(patterns, key=key)
    work = partial(_open_shard, index_dir=index_dir, crc=crc, key=key)
    # Threads: nearly all the time goes to the disk and to checksums, which let others run.
    with ThreadPoolExecutor(max(1, min(threads, len(paths)))) as pool:
        return tuple(pool.map(work, paths))


def _open_shard(path: str, *, index_dir: str | None, crc: bool, key: str) -> Shard:
    try:
        with ShardFile(path) as file:
            for place in index_paths(path, index_dir):
                summary = load_summary(place)
                if summary is not None and is_fresh(summary, file) and (summary.has_crc or not crc):
                    return Shard(path=path, index_path=place, summary=summary, is_new=False)
            refuse_no_tar(file, key=key)
            index = build_index(file, crc=crc)
    except OSError as error:
        raise UsageError(f"{key}: {path} cannot be read: {error.strerror}") from error
    place = keep_index(index, path, index_dir)
    return Shard(path=path, index_path=place, summary=index.summary, is_new=True)


_NOT_TARS = {
    b"\x1f\x8b": "gzip-compressed; unpack it",
    b"\xfd7zXZ": "xz-compressed; unpack it",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; unpack it",
    b"BZh": "bzip2-compressed; unpack it",
    b"PK\x03\x04": "a zip; repack it as a tar",
    b"version https://git-lfs": "a git-lfs pointer; run git lfs pull",
}


def refuse_no_tar(file: ShardFile, *, key: str) -> None:
    """Tell apart what never was a tar from a damaged one.

    Raises:
        UsageError: the file is empty, a web page, compressed or the like.
    """
    head = file.read(0, BLOCK)
    what = next((what for magic, what in _NOT_TARS.items() if head.startswith(magic)), None)
    if not head:
        what = "empty; fetch it again"
    elif what is None and head.strip(b"\0") and isinstance(parse_header(head), str):
        # A first header that is damaged has others behind it.
        kind = "a web page, no tar" if head.lstrip()[:1] == b"<" else "no tar"
        if kind != "no tar" or MAGIC not in file.read(0, _MAGIC_WITHIN):
            what = f"{kind} (it begins {_first_words(head)}); fetch it again"
    if what is not None:
        raise UsageError(f"{key}: {file.path} is {what}")


def _first_words(head: bytes) -> str:
    return repr(head.lstrip()[:24].decode("utf-8", "replace"))
