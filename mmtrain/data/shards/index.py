"""The index of one shard: which samples it has and where their files are."""

import hashlib
import json
import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mmtrain.data.images.decode import IMAGE_EXTENSIONS
from mmtrain.data.images.header_size import header_size
from mmtrain.data.shards.tar_scan import Damage, Member, scan
from mmtrain.data.storage.file import File
from mmtrain.data.storage.hidden_names import is_hidden

_PIECE = 4096
_CRC_CHUNK = 1 << 22
_IMAGE_RANK = {extension: rank for rank, extension in enumerate(IMAGE_EXTENSIONS)}
_META = re.compile(r"__[^/]*__($|/)")


APART = "its files stand apart in the tar; pack it sorted by name"
IN_FOLDERS = "its files lie in several folders of the tar, which makes them several samples"
DOTTED = "its name has dots, and the extension begins at the first one; rename it without"


class Entry(NamedTuple):
    """One member of a sample."""

    offset: int
    """Where its content begins in the shard."""
    size: int
    """Bytes of content."""
    header_crc: int
    """CRC-32 of the header before it: tells that this is still the file that was indexed."""
    crc: int | None
    """CRC-32 of the content, where the index has them."""


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """What an index says of its shard as a whole; read without its arrays."""

    shard_bytes: int
    """Size of the shard."""
    content_hash: str
    """Of the shard's first, middle and last 4 KiB."""
    index_hash: str
    """Of all keys, offsets and sizes; without checksums, so that adding them changes nothing."""
    num_samples: int
    """Groups of members with one key."""
    num_members: int
    """Files that belong to a sample."""
    num_ignored: int
    """Files that belong to none: hidden, without extension, or `__meta__`."""
    extensions: tuple[str, ...]
    """All that occur, in lower case, without the first dot."""
    has_crc: bool
    """Whether every member's content has a checksum."""
    crc_hash: str | None
    """Of all checksums in their order; None without."""
    damage: tuple[Damage, ...]
    """Where members were lost."""
    version: str | None = None
    """What an object store said of the shard's content (its etag); None of a local one."""
    has_sizes: bool = False
    """Whether the images' headers were looked at for height and width."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """A summary with the arrays behind it: S samples with M members in all."""

    summary: IndexSummary
    """What they add up to."""
    keys: np.ndarray
    """uint8, the keys in UTF-8, one after another."""
    key_end_S: np.ndarray
    """int64, where each key ends in `keys`."""
    member_end_S: np.ndarray
    """int64, where each sample's members end."""
    extension_M: np.ndarray
    """uint16, number of the extension."""
    offset_M: np.ndarray
    """int64."""
    size_M: np.ndarray
    """int64."""
    header_crc_M: np.ndarray
    """uint32."""
    crc_M: np.ndarray
    """uint32, empty without checksums."""
    height_S: np.ndarray
    """uint32, of each sample's image, as its header says; 0 where that is not known."""
    width_S: np.ndarray
    """uint32, likewise."""

    def key(self, sample: int) -> str:
        """The sample's path inside the shard up to the first dot of its file name."""
        begin = int(self.key_end_S[sample - 1]) if sample else 0
        return self.keys[begin : int(self.key_end_S[sample])].tobytes().decode("utf-8")

    def name_fault(self, sample: int, wanted: Collection[str]) -> str:
        """Why the names in the tar leave a sample without a file that is there; empty: they do not.

        The layout joins members that stand together and share their path up to the first dot of
        the file name; what a writer meant to be one sample may be none by that rule.

        Args:
            sample: one that lacks a file.
            wanted: extensions that the file could have.
        """
        own, key = self.members(sample).keys(), self.key(sample)
        for other in self._samples_of_name.get(key.rpartition("/")[2], ()):
            there = self.members(other).keys()
            if not there & own and there & set(wanted):
                return APART if self.key(other) == key else IN_FOLDERS
        dotted = {extension.rpartition(".")[2] for extension in own if "." in extension}
        return DOTTED if dotted & set(wanted) else ""

    @cached_property
    def _samples_of_name(self) -> dict[str, list[int]]:
        """Samples by their file name without folders, where several have one."""
        found: dict[str, list[int]] = {}
        for sample in range(self.summary.num_samples):
            found.setdefault(self.key(sample).rpartition("/")[2], []).append(sample)
        return {name: samples for name, samples in found.items() if len(samples) > 1}

    def members(self, sample: int) -> dict[str, Entry]:
        """The sample's files by extension."""
        begin = int(self.member_end_S[sample - 1]) if sample else 0
        extensions = self.summary.extensions
        return {
            extensions[self.extension_M[m]]: Entry(
                int(self.offset_M[m]),
                int(self.size_M[m]),
                int(self.header_crc_M[m]),
                int(self.crc_M[m]) if self.summary.has_crc else None,
            )
            for m in range(begin, int(self.member_end_S[sample]))
        }


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, by webdataset's rule; None if it belongs to no sample.

    The key keeps the folders and ends at the first dot of the file name: `a.b/0001.seg.png` is
    `a.b/0001` and `seg.png`.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or _META.match(name) or is_hidden(name):
        return None
    return folder + slash + stem, extension.lower()


def build_index(shard: File, *, crc: bool) -> ShardIndex:
    """Read every header of a shard; with `crc`, every byte."""
    samples: list[tuple[str, dict[str, Member]]] = []
    damage: list[Damage] = []
    num_ignored = 0
    crcs: list[int] = []
    images: list[tuple[int, int, int]] = []
    for found in scan(shard):
        if isinstance(found, Damage):
            damage.append(found)
        elif (named := split_name(found.name)) is None:
            num_ignored += 1
        else:
            key, extension = named
            # A key again with a file that it has already is another sample of that name.
            if not samples or samples[-1][0] != key or extension in samples[-1][1]:
                samples.append((key, {}))
                images.append(_NO_IMAGE)
            samples[-1][1][extension] = found
            if crc:  # at once, while a remote shard's bytes are here
                content, head = _read_content(shard, found)
                crcs.append(content)
                images[-1] = min(images[-1], _image(extension, head))
    extensions = sorted({extension for _, members in samples for extension in members})
    number = {extension: i for i, extension in enumerate(extensions)}
    rows = [(number[name], each) for _, members in samples for name, each in members.items()]
    encoded = [key.encode("utf-8") for key, _ in samples]
    arrays = {
        "keys": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "key_end_S": np.cumsum([len(key) for key in encoded], dtype=np.int64),
        "member_end_S": np.cumsum([len(members) for _, members in samples], dtype=np.int64),
        "extension_M": np.array([row[0] for row in rows], dtype=np.uint16),
        "offset_M": np.array([row[1].offset for row in rows], dtype=np.int64),
        "size_M": np.array([row[1].size for row in rows], dtype=np.int64),
    }
    crc_M = np.array(crcs, dtype=np.uint32)
    summary = IndexSummary(
        shard_bytes=shard.size,
        content_hash=content_hash(shard),
        index_hash=_index_hash(arrays, extensions),
        num_samples=len(samples),
        num_members=len(rows),
        num_ignored=num_ignored,
        extensions=tuple(extensions),
        has_crc=crc,
        crc_hash=hash_crcs(crc_M) if crc else None,
        damage=tuple(damage),
        version=shard.version,
        has_sizes=crc,
    )
    return ShardIndex(
        summary=summary,
        **arrays,
        header_crc_M=np.array([row[1].header_crc for row in rows], dtype=np.uint32),
        crc_M=crc_M,
        height_S=np.array([image[1] for image in images], dtype=np.uint32),
        width_S=np.array([image[2] for image in images], dtype=np.uint32),
    )


_NO_IMAGE = (len(_IMAGE_RANK) + 1, 0, 0)


def _image(extension: str, head: bytes) -> tuple[int, int, int]:
    """How a member ranks among those that may be the sample's image, with its height and width."""
    height, width = header_size(head)
    # Without an image's extension it is one only by its content.
    rank = _IMAGE_RANK.get(extension, len(_IMAGE_RANK) if height else _NO_IMAGE[0])
    return rank, height, width


def _read_content(shard: File, member: Member) -> tuple[int, bytes]:
    """CRC-32 of a member's content, and its beginning."""
    crc, offset, end, head = 0, member.offset, member.offset + member.size, b""
    while offset < end:
        chunk = shard.read(offset, min(_CRC_CHUNK, end - offset))
        if not chunk:
            break
        head = head or chunk
        crc = zlib.crc32(chunk, crc)
        offset += len(chunk)
    return crc, head


def hash_crcs(crc_M: np.ndarray) -> str:
    """What tells the contents of one shard from those of another with the same names and sizes."""
    data = crc_M.astype("<u4").tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def content_hash(shard: File) -> str:
    """A cheap hash that another content of the same size has not: of three pieces of it."""
    hashed = hashlib.blake2b(str(shard.size).encode(), digest_size=16)
    for start in (0, shard.size // 2, max(0, shard.size - _PIECE)):
        hashed.update(shard.read(start, _PIECE))
    return hashed.hexdigest()


def _index_hash(arrays: dict[str, np.ndarray], extensions: list[str]) -> str:
    hashed = hashlib.blake2b(json.dumps(extensions).encode(), digest_size=16)
    for name, array in arrays.items():
        hashed.update(f"{name} {array.size} ".encode())
        hashed.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return hashed.hexdigest()
