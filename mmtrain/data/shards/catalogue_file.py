"""Where catalogues are kept, and how one is written: whole or not at all."""

import json
import os
import uuid
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmtrain.data.shards.catalogue import (
    HASHES,
    MAGIC,
    TABLE,
    TAIL,
    aligned,
    block_columns,
    hash_table,
)
from mmtrain.data.shards.index import IndexSummary, ShardIndex
from mmtrain.data.shards.index_file import CATALOGUE_SUFFIX, index_paths
from mmtrain.data.storage.addresses import is_web

_STEM = "shards"


def catalogue_paths(folder: str, index_dir: str | None) -> list[Path]:
    """Where the catalogue of a folder of shards may be, the place for a new one first.

    As with the index of a shard: `index_dir`, or without one the folder itself and, where it cannot
    be written or is not on this machine, the user's cache folder.
    """
    stem = f"{folder}/{_STEM}" if folder else _STEM
    return index_paths(stem, index_dir, suffix=CATALOGUE_SUFFIX)


def folder_of(path: str) -> str:
    """The folder that a shard is in, of this machine or not; empty: the current one."""
    return os.path.dirname(path.partition("?")[0] if is_web(path) else path)


class CatalogueWriter:
    """Writes a catalogue row by row, sorted by name; `close` puts it in its place.

    Args:
        path: its place; another file is there until `close`.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}.partial")
        self._stream: BinaryIO = self._partial.open("wb")
        self._rows: dict[str, list[int]] = {name: [] for name in TABLE if name.endswith("_T")}
        self._hashes: dict[str, list[bytes]] = {name: [] for name in HASHES}
        self._names, self._versions = bytearray(), bytearray()
        self._extensions: dict[tuple[str, ...], int] = {}
        self._damage: dict[int, list[tuple[int, str]]] = {}
        self._write(MAGIC)

    def add(self, name: str, index: ShardIndex) -> None:
        """One shard's index."""
        summary, key_bytes = index.summary, index.keys.size
        pieces = []
        for column, dtype, length in block_columns(summary, key_bytes):
            data = getattr(index, column)[:length].astype(dtype).tobytes()
            pieces.append(data.ljust(aligned(len(data)), b"\0"))
        self.add_block(name, summary, key_bytes, b"".join(pieces))

    def add_block(self, name: str, summary: IndexSummary, key_bytes: int, block: bytes) -> None:
        """One shard's index as another catalogue has it."""
        row = len(self._rows["block_T"])
        self._names += name.encode()
        self._versions += (summary.version or "").encode()
        values = {
            "name_end_T": len(self._names),
            "shard_bytes_T": summary.shard_bytes,
            "num_samples_T": summary.num_samples,
            "num_members_T": summary.num_members,
            "num_ignored_T": summary.num_ignored,
            "key_bytes_T": key_bytes,
            "block_T": self._stream.tell(),
            "version_end_T": len(self._versions),
            "block_crc_T": zlib.crc32(block),
            "extensions_T": self._extensions.setdefault(summary.extensions, len(self._extensions)),
            "has_crc_T": int(summary.has_crc),
            "has_sizes_T": int(summary.has_sizes),
        }
        for column, value in values.items():
            self._rows[column].append(value)
        told = (summary.content_hash, summary.index_hash, summary.crc_hash or "0" * 32)
        for column, text in zip(HASHES, told, strict=True):
            self._hashes[column].append(bytes.fromhex(text))
        if summary.damage:
            self._damage[row] = [(each.offset, each.reason) for each in summary.damage]
        self._write(block)

    def close(self) -> Path:
        """Write the table, and put the file in its place."""
        texts = {"names": bytes(self._names), "versions": bytes(self._versions)}
        texts |= {name: b"".join(hashes) for name, hashes in self._hashes.items()}
        begin, lengths, pieces = self._stream.tell(), {}, []
        for name, dtype in TABLE.items():
            is_text = name in texts
            data = texts[name] if is_text else np.array(self._rows[name], dtype=dtype).tobytes()
            lengths[name] = len(data) // np.dtype(dtype).itemsize
            pieces.append(data.ljust(aligned(len(data)), b"\0"))
        described = {
            "table": begin,
            "lengths": lengths,
            "extensions": list(self._extensions),
            "damage": self._damage,
        }
        pieces.append(json.dumps(described).encode())
        table = b"".join(pieces)
        self._write(table)
        length = len(pieces[-1])
        self._write(TAIL.pack(begin + len(table) - length, length, hash_table(table), MAGIC))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        os.replace(self._partial, self._path)
        return self._path

    def abandon(self) -> None:
        """Leave nothing behind; after `close` there is nothing to leave."""
        self._stream.close()
        self._partial.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
