"""A remote file read through the cache on disk."""

from collections.abc import Sequence
from typing import Self

from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.file import File, Range, read_joined

_GAP = 1 << 18


class CachedFile:
    """A file whose bytes are fetched once a machine, as long as there is room.

    Args:
        file: where they come from; it has a version, without which old bytes could be taken for
            new ones.
        cache: where they are kept.
    """

    def __init__(self, file: File, cache: Cache) -> None:
        assert file.version is not None
        self.path, self.size = file.path, file.size
        self.version: str | None = file.version
        self._file, self._cache = file, cache
        self._place = cache.folder_of(self.path, self.size, file.version)

    def read(self, offset: int, size: int) -> bytes:
        """See `File.read`."""
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        if not self._cache.whole:
            return self._piece(0, end - offset, piece=(offset, end - offset))
        parts, length = [], self._cache.piece
        while offset < end:
            begin = offset // length * length
            piece = begin, min(length, self.size - begin)
            take = min(end, begin + piece[1]) - offset
            parts.append(self._piece(offset - begin, take, piece=piece))
            offset += take
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _piece(self, first: int, size: int, *, piece: Range) -> bytes:
        return self._cache.read(self._place, first, size, piece=piece, file=self._file)

    def read_ranges(self, ranges: Sequence[Range]) -> list[memoryview]:
        """See `File.read_ranges`."""
        return read_joined(self, ranges, gap=_GAP)

    def close(self) -> None:
        """See `File.close`."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
