"""A part of a file as the cache has it on disk: its bytes, a checksum of each block, and an end
that tells its length."""

import contextlib
import os
import struct
import time
import zlib

from mmtrain.data.storage.file import File, LocalFile

_BLOCK = 1 << 12
"""Small enough that zlib keeps the interpreter's lock, which threads that decode side by side would
else hand to and fro for each block."""
_END = struct.Struct("=8sQI")
"""In this machine's order of bytes, as the checksums: what another one wrote is then not sound."""
_MAGIC = b"mmtrain2"
_AGE = 60.0


class Piece:
    """A part of a file, which is kept or fetched as one.

    Args:
        folder: where it is kept.
        offset: where it begins in the file.
        size: bytes.
        file: fetches it.
    """

    __slots__ = ("file", "name", "offset", "path", "size")

    def __init__(self, folder: str, *, offset: int, size: int, file: File) -> None:
        self.offset, self.size, self.file = offset, size, file
        self.name = f"{offset}-{size}"
        self.path = f"{folder}/{self.name}"


class OpenPiece:
    """A piece that is there, open for reading as long as somebody holds this.

    Args:
        piece: which.

    Raises:
        OSError: it is not there.
    """

    __slots__ = ("_crcs", "_file", "_looked_at", "_size")

    def __init__(self, piece: Piece) -> None:
        self._file, self._size = LocalFile(piece.path), piece.size
        self._crcs = self._read_crcs()
        self._looked_at = float("-inf")

    def _read_crcs(self) -> "memoryview[int] | None":
        """The checksums behind its bytes; None unless nothing else is there."""
        size = 4 * -(-self._size // _BLOCK)
        tail = self._bytes(self._size, size + _END.size + 1)
        crcs = tail[:size]
        if tail[size:] != _END.pack(_MAGIC, self._size, zlib.crc32(crcs)):
            return None
        return memoryview(crcs).cast("I")

    def _bytes(self, offset: int, size: int) -> bytes:
        """Nothing where the disk fails."""
        try:
            return self._file.read(offset, size)
        except OSError:
            return b""

    def read(self, first: int, size: int) -> bytes | None:
        """Bytes of it; None unless they are as they came.

        Args:
            first: where they begin in the piece.
            size: how many.
        """
        if (crcs := self._crcs) is None:
            return None
        begin, last = first // _BLOCK, (first + size - 1) // _BLOCK
        at = begin * _BLOCK
        data = self._bytes(at, min((last + 1) * _BLOCK, self._size) - at)
        view = memoryview(data)
        for block in range(begin, last + 1):
            inside = block * _BLOCK - at
            if zlib.crc32(view[inside : inside + _BLOCK]) != crcs[block]:
                return None
        return data[first - at : first - at + size]

    def is_still_kept(self) -> bool:
        """Whether it has its name, looked at once a minute; then it is also seen to that it does
        not look unused, since what was wanted last is dropped last."""
        if time.monotonic() - self._looked_at < _AGE:
            return True
        self._looked_at = time.monotonic()
        with contextlib.suppress(OSError):  # another user's
            told = os.fstat(self._file.fileno())
            if time.time() - told.st_mtime > _AGE:
                os.utime(self._file.fileno())
            return told.st_nlink > 0
        return True


def seal_of(data: bytes) -> bytes:
    """What is written behind the bytes of a piece."""
    view = memoryview(data)
    crcs = b"".join(
        struct.pack("=I", zlib.crc32(view[i : i + _BLOCK])) for i in range(0, len(data), _BLOCK)
    )
    return crcs + _END.pack(_MAGIC, len(data), zlib.crc32(crcs))
