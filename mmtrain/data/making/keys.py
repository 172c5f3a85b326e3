"""Names of samples in shards: readable, unique over the set, and the same whenever it is made."""

import hashlib
import os
import re
import unicodedata
from array import array

import numpy as np

from mmtrain.data.images.decode import has_image_name
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.manifest import ManifestSource
from mmtrain.data.sources.source import SampleSource

_NOT_READABLE = re.compile(r"[^\w-]+")
_META = re.compile(r"__.*__")
"""What a tar's reader takes for notes about the tar; see `split_name`."""
_LONGEST = 80
"""Bytes; a tar's plain header has room for 100."""


def readable_key(name: str) -> str:
    """A key that a tar can hold, of what a source calls a sample: `sub/a b.jpg` is `sub/a-b`."""
    stem = os.path.splitext(name)[0] if has_image_name(name) else name
    parts = unicodedata.normalize("NFC", stem).split("/")
    kept = [_NOT_READABLE.sub("-", part).strip("-") for part in parts]
    kept = [part.strip("_") or "x" if _META.fullmatch(part) else part for part in kept if part]
    key = "/".join(kept) or "x"
    encoded = key.encode()
    if len(encoded) <= _LONGEST:
        return key
    digest = hashlib.blake2b(encoded, digest_size=6).hexdigest()
    return f"{encoded[: _LONGEST - 13].decode(errors='ignore')}-{digest}"


class Keys:
    """The key of each sample, and which samples are one: a table's rows of the same image.

    Shards keep their keys. A key that comes again gets `+2`, `+3` ... in the order of the source,
    so that what is added behind changes no name.

    Args:
        source: the samples.
    """

    def __init__(self, source: SampleSource) -> None:
        self._source = source
        self._is_exact = isinstance(source, ShardSource)
        self._is_table = isinstance(source, ManifestSource)
        self._counts: dict[int, int] = {}
        """Sample -> the number behind its key, where it has one."""
        self.also: dict[int, list[int]] = {}
        """The first row of an image -> its other ones."""
        self.numbers = self._named()
        """Samples that have a key of their own, in the source's order."""

    def _named(self) -> np.ndarray:
        first: dict[int, int] = {}
        seen: dict[int, int] = {}
        numbers = array("q")
        for sample in range(self._source.num_samples):
            name = self._source.key(sample)
            if self._is_table and (row := first.setdefault(_hashed(name), sample)) != sample:
                self.also.setdefault(row, []).append(sample)
                continue
            numbers.append(sample)
            self._count(sample, self._readable(name), seen)
        return np.array(numbers, dtype=np.int64)

    def _count(self, sample: int, key: str, seen: dict[int, int]) -> None:
        count = seen.get(_hashed(key), 0)
        if count:
            count += 1
            while (again := _hashed(f"{key}+{count}")) in seen:
                count += 1
            self._counts[sample], seen[again] = count, 1
        seen[_hashed(key)] = count or 1

    def _readable(self, name: str) -> str:
        return name if self._is_exact else readable_key(name)

    def plain(self, sample: int) -> str:
        """A sample's key before it is told from others of the same."""
        return self._readable(self._source.key(sample))

    def __getitem__(self, sample: int) -> str:
        key = self.plain(sample)
        count = self._counts.get(sample)
        return f"{key}+{count}" if count else key


def _hashed(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
