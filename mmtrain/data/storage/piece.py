"""A part of a file as the cache has it on disk: its bytes, a checksum of each block, and an end
that tells its length."""

import os
import struct
import zlib

from mmtrain.data.storage.file import File

_BLOCK = 1 << 14
_END = struct.Struct("<8sQI")
_MAGIC = b"mmtrain1"


class Piece:
    """A part of a file, which is kept or fetched as one.

    Args:
        folder: where it is kept.
        offset: where it begins in the file.
        size: bytes.
        file: fetches it.
    """

    __slots__ = ("_crcs", "file", "looked_at", "name", "offset", "path", "size")

    def __init__(self, folder: str, *, offset: int, size: int, file: File) -> None:
        self.offset, self.size, self.file = offset, size, file
        self.name = f"{offset}-{size}"
        self.path = f"{folder}/{self.name}"
        self.looked_at = float("-inf")
        """When it was last seen to that it does not look unused, by `time.monotonic`."""
        self._crcs: bytes | None = None
        """Of its blocks, once the end was right: what they are does not change with what is on
        disk."""

    def read(self, descriptor: int, first: int, size: int) -> bytes | None:
        """Bytes of it from where it is kept; None unless they are as they came.

        Args:
            descriptor: of the opened file.
            first: where they begin in the piece.
            size: how many.

        Raises:
            OSError: it cannot be read.
        """
        crcs = self._crcs = self._crcs or self._read_crcs(descriptor)
        if crcs is None:
            return None
        begin, last = first // _BLOCK, (first + size - 1) // _BLOCK
        at = begin * _BLOCK
        data = os.pread(descriptor, min((last + 1) * _BLOCK, self.size) - at, at)
        view = memoryview(data)
        for block in range(begin, last + 1):
            inside = block * _BLOCK - at
            wanted = int.from_bytes(crcs[4 * block : 4 * block + 4], "little")
            if zlib.crc32(view[inside : inside + _BLOCK]) != wanted:
                self._crcs = None
                return None
        return data[first - at : first - at + size]

    def _read_crcs(self, descriptor: int) -> bytes | None:
        """The checksums behind its bytes; None unless nothing else is there."""
        size = 4 * -(-self.size // _BLOCK)
        tail = os.pread(descriptor, size + _END.size + 1, self.size)
        crcs = tail[:size]
        return crcs if tail[size:] == _END.pack(_MAGIC, self.size, zlib.crc32(crcs)) else None


def sealed(data: bytes) -> bytes:
    """What is written of a piece."""
    crcs = b"".join(
        struct.pack("<I", zlib.crc32(data[i : i + _BLOCK])) for i in range(0, len(data), _BLOCK)
    )
    return data + crcs + _END.pack(_MAGIC, len(data), zlib.crc32(crcs))
