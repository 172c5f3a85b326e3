"""A remote file read through the cache on disk."""

from collections.abc import Iterator, Sequence
from typing import Self

from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.file import File, Range, join_ranges, read_joined
from mmtrain.data.storage.piece import Piece

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
        self.place = cache.folder_of(self.path, self.size, file.version)
        """The folder of its pieces."""
        self._folder = str(self.place)
        self._pieces: dict[int, Piece] = {}

    def read(self, offset: int, size: int) -> bytes:
        """See `File.read`."""
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        if not self._cache.whole:
            return self._cache.read(self._piece(offset, end - offset), 0, end - offset)
        parts, length = [], self._cache.piece
        while offset < end:
            piece = self._large_piece(offset // length)
            take = min(end, piece.offset + piece.size) - offset
            parts.append(self._cache.read(piece, offset - piece.offset, take))
            offset += take
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self) -> Iterator[Piece]:
        """All of them in order, where it is kept in large ones."""
        return map(self._large_piece, range(-(-self.size // self._cache.piece)))

    def pieces_of(self, ranges: Sequence[Range]) -> list[Piece]:
        """Those that `read_ranges` asks for, where just what is read is kept."""
        joined = join_ranges(ranges, gap=_GAP)
        return [self._piece(first, size) for first, size, _ in joined if first < self.size]

    def _large_piece(self, number: int) -> Piece:
        """One that knows what was found out about it, as long as the file is open."""
        piece = self._pieces.get(number)
        if piece is None:
            length = self._cache.piece
            piece = self._pieces[number] = self._piece(number * length, length)
        return piece

    def _piece(self, offset: int, size: int) -> Piece:
        size = min(size, self.size - offset)
        return Piece(self._folder, offset=offset, size=size, file=self._file)

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
