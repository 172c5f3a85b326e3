"""A whole file brought here, in parts, by its checksum; what was interrupted goes on."""

import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mmtrain.data.storage.file import File
from mmtrain.data.storage.open import open_file
from mmtrain.data.storage.patience import patience, patiently
from mmtrain.errors import UsageError
from mmtrain.files import sha256_of, writing

_PART, _AT_ONCE = 16 << 20, 4
_PARTIAL = ".partial"
Checksum = tuple[int, str]
"""Size and SHA-256."""


def fetch_file(address: str, path: Path, *, wanted: Collection[Checksum]) -> int:
    """Bring a file to `path`, unless it is there -> the bytes that came.

    What is not whole yet stands beside it, is kept by an interruption and gone on with.

    Args:
        address: what `open_file` opens.
        path: below a folder that is there.
        wanted: it is one of these, or refused.

    Raises:
        OSError: it cannot be read, or written.
        UsageError: its bytes are not those that are wanted.
    """
    if path.exists() and checksum_of(path, wanted) in wanted:
        return 0
    beside = path.with_name(f".{path.name}{_PARTIAL}")
    with patiently(partial(open_file, address), seconds=patience()) as file:
        sizes = sorted({size for size, _ in wanted})
        if file.size not in sizes:
            told = " or ".join(f"{size:,}" for size in sizes)
            raise UsageError(f"{address} has {file.size:,} bytes, not {told}; send it again")
        begun = beside.stat().st_size if beside.exists() else 0
        for start in dict.fromkeys((begun if begun <= file.size else 0, 0)):
            with writing(path):
                _append(file, beside, start)
            if checksum_of(beside, wanted) in wanted:
                os.replace(beside, path)
                return file.size - start
    beside.unlink()
    raise UsageError(
        f"{address} is damaged: its bytes are not those of its checksum; remove it there and send "
        "it again"
    )


def checksum_of(path: Path, wanted: Collection[Checksum]) -> Checksum | None:
    """Size and hash of a file; None where the size alone says that it is not wanted."""
    size = path.stat().st_size
    return (size, sha256_of(path)) if any(size == one for one, _ in wanted) else None


def _append(file: File, path: Path, start: int) -> None:
    with path.open("r+b" if start else "wb") as stream, ThreadPoolExecutor(_AT_ONCE) as pool:
        stream.seek(start)
        stream.truncate()
        for first in range(start, file.size, _PART * _AT_ONCE):
            _append_parts(file, stream, pool, first)
        stream.flush()
        os.fsync(stream.fileno())


def _append_parts(file: File, stream: BinaryIO, pool: ThreadPoolExecutor, first: int) -> None:
    seconds = patience()

    def read(offset: int) -> bytes:
        return patiently(lambda: file.read(offset, _PART), seconds=seconds)

    end = min(first + _PART * _AT_ONCE, file.size)
    for data in pool.map(read, range(first, end, _PART)):
        stream.write(data)
