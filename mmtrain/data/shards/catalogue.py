"""A catalogue: the indexes of a whole folder of shards in one file, mapped into memory.

    magic | a block of plain arrays a shard | the table, a row a shard | its description | tail

All numbers are little-endian; nothing is unpickled. The table and its description are checked by a
hash when the file is opened, each block by a checksum when it is first used. The processes of a
machine share the pages, and only what is looked up is read.
"""

import hashlib
import json
import mmap
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmtrain.data.shards.index import IndexSummary, ShardIndex
from mmtrain.data.shards.tar_scan import Damage
from mmtrain.data.storage.patience import may_pass
from mmtrain.errors import UsageError

MAGIC = b"mmtrain shards 1"
TAIL = struct.Struct("<QQ16s16s")
"""Where the description begins, its length, the hash of table and description, and `MAGIC`."""
ALIGNMENT = 8
TABLE = {
    "name_end_T": "<i8",
    "shard_bytes_T": "<i8",
    "num_samples_T": "<i8",
    "num_members_T": "<i8",
    "num_ignored_T": "<i8",
    "key_bytes_T": "<i8",
    "block_T": "<i8",
    "version_end_T": "<i8",
    "block_crc_T": "<u4",
    "extensions_T": "<u4",
    "has_crc_T": "<u1",
    "has_sizes_T": "<u1",
    "content_hash_T": "<u1",
    "index_hash_T": "<u1",
    "crc_hash_T": "<u1",
    "names": "<u1",
    "versions": "<u1",
}
HASHES = ("content_hash_T", "index_hash_T", "crc_hash_T")
HASH_BYTES = 16
# What a file that is missing, torn, forged or of another version raises.
_UNREADABLE = (AttributeError, KeyError, OSError, TypeError, ValueError, struct.error)


class Column(NamedTuple):
    """One array of a block."""

    name: str
    dtype: str
    length: int


def block_columns(summary: IndexSummary, key_bytes: int) -> Iterator[Column]:
    """The arrays of a shard's block, each begun at a multiple of `ALIGNMENT`; in half the bytes
    where the shard is small enough."""
    samples, members = summary.num_samples, summary.num_members
    place = "<u4" if summary.shard_bytes < 1 << 32 else "<i8"
    yield Column("offset_M", place, members)
    yield Column("size_M", place, members)
    yield Column("header_crc_M", "<u4", members)
    yield Column("crc_M", "<u4", members if summary.has_crc else 0)
    yield Column("key_end_S", place, samples)
    yield Column("member_end_S", "<u4", samples)
    yield Column("height_S", "<u4", samples if summary.has_sizes else 0)
    yield Column("width_S", "<u4", samples if summary.has_sizes else 0)
    yield Column("extension_M", "<u1" if len(summary.extensions) <= 256 else "<u2", members)
    yield Column("keys", "<u1", key_bytes)


def aligned(size: int) -> int:
    """`size` made a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Catalogue:
    """An opened catalogue; pickled by its path.

    Args:
        path: the file.

    Raises:
        OSError, ValueError: it cannot be read, or is none, torn or of another version.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as stream:
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        begin, length, self.table_hash, magic = TAIL.unpack(self._bytes[-TAIL.size :])
        if self._bytes[: len(MAGIC)] != MAGIC or magic != MAGIC:
            raise ValueError("no catalogue, or one of another version")
        described = json.loads(self._bytes[begin : begin + length])
        table = int(described["table"])
        if hash_table(self._bytes[table : begin + length]) != self.table_hash:
            raise ValueError("a damaged catalogue")
        self._extensions = [tuple(each) for each in described["extensions"]]
        self._damage: dict[str, list[Any]] = described["damage"]
        self._columns: dict[str, np.ndarray] = {}
        for name, dtype in TABLE.items():
            column = self._view(dtype, described["lengths"][name], table)
            self._columns[name] = column.reshape(-1, HASH_BYTES) if name in HASHES else column
            table = aligned(table + column.nbytes)
        self._is_checked = bytearray(len(self))

    def __len__(self) -> int:
        return self._columns["num_samples_T"].size

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.table_hash)

    def column(self, name: str) -> np.ndarray:
        """One column of `TABLE`, a row a shard."""
        return self._columns[name]

    def names(self) -> list[str]:
        """The shards' file names, sorted."""
        return [self._text("names", "name_end_T", row) for row in range(len(self))]

    def damaged(self) -> list[int]:
        """The rows of shards in which members were lost."""
        return [int(row) for row in self._damage]

    def summary(self, row: int) -> IndexSummary:
        """What a shard's index says as a whole."""
        columns = self._columns
        content, index, crc = (columns[name][row].tobytes().hex() for name in HASHES)
        has_crc = bool(columns["has_crc_T"][row])
        damage = self._damage.get(str(row), ())
        return IndexSummary(
            shard_bytes=int(columns["shard_bytes_T"][row]),
            content_hash=content,
            index_hash=index,
            num_samples=int(columns["num_samples_T"][row]),
            num_members=int(columns["num_members_T"][row]),
            num_ignored=int(columns["num_ignored_T"][row]),
            extensions=self._extensions[columns["extensions_T"][row]],
            has_crc=has_crc,
            crc_hash=crc if has_crc else None,
            damage=tuple(Damage(int(offset), str(reason)) for offset, reason in damage),
            version=self.version(row),
            has_sizes=bool(columns["has_sizes_T"][row]),
        )

    def version(self, row: int) -> str | None:
        """What the store said of a shard's content."""
        return self._text("versions", "version_end_T", row) or None

    def index(self, row: int, *, summary: IndexSummary | None = None) -> ShardIndex | None:
        """A shard's index: views of the file, no copies; None if the file is damaged there.

        Args:
            row: the shard's.
            summary: what `summary` says of it, where that was asked already.
        """
        summary = summary or self.summary(row)
        begin = at = int(self._columns["block_T"][row])
        arrays = {}
        for name, dtype, length in block_columns(summary, int(self._columns["key_bytes_T"][row])):
            arrays[name] = self._view(dtype, length, at)
            at = aligned(at + arrays[name].nbytes)
        if not self._is_checked[row]:
            if zlib.crc32(memoryview(self._bytes)[begin:at]) != self._columns["block_crc_T"][row]:
                return None
            self._is_checked[row] = 1
        if not summary.has_sizes:
            arrays["height_S"] = arrays["width_S"] = np.zeros(summary.num_samples, dtype=np.uint32)
        return ShardIndex(summary=summary, **arrays)

    def block(self, row: int) -> bytes:
        """A shard's block as it is in the file, for another catalogue; see `index`."""
        begin = int(self._columns["block_T"][row])
        columns = block_columns(self.summary(row), int(self._columns["key_bytes_T"][row]))
        return self._bytes[begin : begin + block_size(columns)]

    def key_bytes(self, row: int) -> int:
        """Bytes of a shard's keys together."""
        return int(self._columns["key_bytes_T"][row])

    def _view(self, dtype: str, length: int, offset: int) -> np.ndarray:
        return np.frombuffer(self._bytes, dtype=dtype, count=length, offset=offset)

    def _text(self, name: str, end_name: str, row: int) -> str:
        ends = self._columns[end_name]
        begin = int(ends[row - 1]) if row else 0
        return self._columns[name][begin : int(ends[row])].tobytes().decode()


def block_size(columns: Iterator[Column]) -> int:
    """Bytes that a shard's block takes."""
    return sum(aligned(np.dtype(dtype).itemsize * length) for _, dtype, length in columns)


def hash_table(data: bytes) -> bytes:
    """Tells a table that was torn or changed."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


def load_catalogue(path: Path) -> Catalogue | None:
    """The catalogue of a path; None if there is none, or none that can be used.

    Raises:
        OSError: it cannot be read just now.
    """
    try:
        return Catalogue(path)
    except _UNREADABLE as error:
        if may_pass(error):
            raise
        return None


@lru_cache(maxsize=8)
def _reopen(path: Path, table_hash: bytes) -> Catalogue:
    found = load_catalogue(path)
    if found is None or found.table_hash != table_hash:
        raise UsageError(f"{path} was made anew while it was in use; start again")
    return found
