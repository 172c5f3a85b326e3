"""Shards as one list of samples: their indexes together, and reading any sample by its number."""

import hashlib
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np

from mmtrain.data.fingerprint import join_fingerprint
from mmtrain.data.images.decode import IMAGE_EXTENSIONS
from mmtrain.data.sample_error import SampleError
from mmtrain.data.shards.index import Entry, ShardIndex
from mmtrain.data.shards.opened import Shard
from mmtrain.data.shards.opening import open_shards
from mmtrain.data.shards.patterns import as_typed
from mmtrain.data.shards.reading import ShardReader
from mmtrain.data.shards.tar_header import BLOCK
from mmtrain.data.storage.addresses import is_remote
from mmtrain.data.storage.cache import Cache, folder_name
from mmtrain.data.storage.cached import CachedFile
from mmtrain.data.storage.caches import asked_for
from mmtrain.data.storage.file import Range
from mmtrain.data.storage.open import open_file
from mmtrain.data.storage.patience import patience
from mmtrain.data.storage.piece import Piece
from mmtrain.errors import UsageError

OnDamage = Literal["stop", "use_rest"]


class ShardSource:
    """All samples of some shards, in the order of the shards and of the samples inside them.

    Safe to pickle and to fork: files are opened where they are read.

    Args:
        patterns: what `expand_patterns` takes.
        index_dir: where indexes are kept; None: beside the shards, or in the user's cache folder
            where that cannot be written.
        verify: check every member against its checksum, which the index must have.
        on_damage: whether a shard with damage stops the run or the rest of it is used.
        image_key: the extension of the images, where it is none that images have, or one of
            several; they are handed on as `image`.
        key: the setting that `patterns` came from, for messages.
        retry_seconds: how long a disk's fault is given to pass; None: see `waiting`.
        cache: keeps what is read of remote shards; None: see `caching`.
        part: number and count of equal parts of the shards, of which one is opened.

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
        image_key: str | None = None,
        key: str = "data.train",
        retry_seconds: float | None = None,
        cache: Cache | None = None,
        part: tuple[int, int] = (0, 1),
    ):
        retry_seconds = patience(retry_seconds)
        self._cache = cache or asked_for()
        self.shards = open_shards(
            patterns,
            index_dir=index_dir,
            compare=verify,
            part=part,
            key=key,
            retry_seconds=retry_seconds,
            cache=self._cache,
        )
        self._reader = ShardReader(
            self.shards, verify=verify, key=key, retry_seconds=retry_seconds, cache=self._cache
        )
        self.verify, self.image_key = verify, image_key
        sizes = self.shards.sizes()
        self.shard_sizes = sizes.tolist()
        self._end_S = np.cumsum(sizes, dtype=np.int64)
        self.num_samples = int(self._end_S[-1])
        self._coming: Callable[[], np.ndarray] | None = None
        if on_damage == "stop":
            self._refuse_damage(key)
        if self.num_samples == 0:
            told = as_typed(patterns)
            raise UsageError(f"{key} = {told}: the shards hold no samples; name others")
        if verify and (bare := self.shards.without_crc()):
            raise UsageError(
                f"data.verify = true needs checksums, which the index of {bare[0].path} has not; "
                f"run: mmtrain data index {bare[0].path}"
            )

    def _refuse_damage(self, key: str) -> None:
        if damaged := self.shards.damaged():
            first = damaged[0].summary.damage[0]
            # An evaluation or an embedding has no such setting.
            rest = ', or set data.on_damage = "use_rest"' if key.startswith("data.") else ""
            raise UsageError(
                f"{key}: {len(damaged)} of {len(self.shards)} shards are damaged, the first is "
                f"{damaged[0].path} at byte {first.offset} ({first.reason}); fetch or pack them "
                f"again{rest}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_coming": None}

    @property
    def is_remote(self) -> bool:
        """Whether a shard is read over a network."""
        return any(map(is_remote, self.shards.paths))

    @property
    def fingerprint(self) -> str:
        """Changes when a shard's size, keys or layout do, or their order; not with their folder.

        Where all shards have checksums, with their contents too.
        """
        layout, content = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        has_crc = True
        for shard in self.shards.hashes():
            layout.update(f"{shard.shard_bytes} {shard.index_hash}\n".encode())
            content.update(f"{shard.crc_hash}\n".encode())
            has_crc = has_crc and shard.crc_hash is not None
        return join_fingerprint(layout.hexdigest(), content.hexdigest() if has_crc else None)

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
        return self._reader.index(number).key(inside)

    def image_size(self, sample: int) -> tuple[int, int] | None:
        """Width and height of a sample's image as the catalogue has them, without a look into its
        shard; None where it does not tell, or where another member is asked for as the image."""
        shard, inside = self.locate(sample)
        index = None if shard.catalogue is None else shard.load()
        if index is None or not index.height_S[inside]:
            return None
        if self.image_key is not None and self.image_key in index.members(inside):
            return None
        return int(index.width_S[inside]), int(index.height_S[inside])

    def extensions(self, sample: int) -> list[str]:
        """Of the sample's files, as the index has them."""
        number, inside = self._locate(sample)
        return list(self._reader.index(number).members(inside))

    def name_fault(self, sample: int, wanted: Collection[str]) -> str:
        """See `ShardIndex.name_fault`."""
        number, inside = self._locate(sample)
        return self._reader.index(number).name_fault(inside, wanted)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The sample's files by extension, or those of them that are `wanted`.

        Raises:
            SampleError: the shard is no longer what was indexed here, or a checksum is wrong.
            OSError: the shard cannot be read, tried several times.
        """
        number, inside = self._locate(sample)
        entries = self._entries(self._reader.index(number), inside, wanted)
        if not entries:
            return {}
        ranges = _ranges(entries)
        pieces = self._reader.read(number, ranges)
        return {
            name: self._content(entry, piece)
            for (name, entry), piece in zip(entries.items(), pieces, strict=True)
        }

    def _entries(
        self, index: ShardIndex, inside: int, wanted: Collection[str] | None
    ) -> dict[str, Entry]:
        """Where those of a sample's files are that are wanted."""
        entries = index.members(inside)
        if self.image_key in entries:
            image = entries.pop(self.image_key)
            entries = {k: v for k, v in entries.items() if k not in IMAGE_EXTENSIONS}
            entries["image"] = image
        if wanted is None:
            return entries
        return {name: entry for name, entry in entries.items() if name in wanted}

    def pieces(self, sample: int, wanted: Collection[str] | None) -> list[Piece] | None:
        """What the cache will be asked for when a sample is read, by ranges; None: its shard was
        not met yet, which whoever reads it does."""
        number, inside = self._locate(sample)
        if (index := self._reader.index_at_hand(number)) is None:
            return None
        file = self._reader.file_at_hand(number) or next(self.kept([number]), None)
        if not isinstance(file, CachedFile):
            return []
        return file.pieces_of(_ranges(self._entries(index, inside, wanted)))

    def expect(self, coming: Callable[[], np.ndarray]) -> None:
        """Tell the cache which shards are wanted next, for when it has to drop some.

        Args:
            coming: the shards' numbers, int64, those that are wanted soonest first.
        """
        is_first, self._coming = self._coming is None, coming
        if self._cache is None or not is_first:
            return
        # Weak: other data may go on reading through this cache when these are gone.
        own, uses = weakref.ref(self), self._cache.budget.next_uses
        uses[id(self)] = lambda there: {} if (one := own()) is None else one._next_use(there)
        weakref.finalize(self, uses.pop, id(self), None).atexit = False

    def _next_use(self, folders: Collection[str]) -> dict[str, int]:
        """See `NextUse`."""
        assert self._coming is not None
        distance_S = np.full(len(self.shards), -1, dtype=np.int64)
        numbers = self._coming()
        distance_S[numbers] = np.arange(numbers.size)
        names, number_N = self._cached_names
        wanted = np.array(sorted(folders), dtype="S32")
        at = np.searchsorted(names, wanted).clip(max=max(0, names.size - 1))
        found = np.flatnonzero(names[at] == wanted) if names.size else np.zeros(0, np.int64)
        far = distance_S[number_N[at[found]]].tolist()
        return dict(zip((name.decode() for name in wanted[found].tolist()), far, strict=True))

    def kept(self, numbers: Iterable[int]) -> Iterator[CachedFile]:
        """Those of some shards that the cache keeps, for whoever fills it ahead."""
        for number in numbers:
            path, size, version = self.shards.content(number)
            file = open_file(path, known=(size, version), cache=self._cache) if version else None
            if isinstance(file, CachedFile):
                yield file

    @cached_property
    def _cached_names(self) -> tuple[np.ndarray, np.ndarray]:
        """What the folders of shards in a cache are called, sorted, and the shards' numbers."""
        told = [
            (folder_name(path, size, version).hex(), number)
            for number, (path, size, version) in enumerate(self.shards.contents())
            if version is not None
        ]
        names = np.array([name for name, _ in told], dtype="S32")
        order = np.argsort(names)
        return names[order], np.array([number for _, number in told], dtype=np.int64)[order]

    def _locate(self, sample: int) -> tuple[int, int]:
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"sample {sample} of {self.num_samples}")
        number = int(np.searchsorted(self._end_S, sample, side="right"))
        return number, sample - int(self._end_S[number]) + self.shard_sizes[number]

    def _content(self, entry: Entry, piece: memoryview) -> bytes:
        if len(piece) < BLOCK + entry.size:
            raise SampleError("shard cut since it was indexed")
        if zlib.crc32(piece[:BLOCK]) != entry.header_crc:
            raise SampleError("shard changed since it was indexed")
        content = bytes(piece[BLOCK:])
        if self.verify and zlib.crc32(content) != entry.crc:
            raise SampleError("checksum wrong")
        return content


def _ranges(entries: Mapping[str, Entry]) -> list[Range]:
    """Of files with their headers."""
    return [(entry.offset - BLOCK, BLOCK + entry.size) for entry in entries.values()]
