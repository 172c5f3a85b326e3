"""A file read from front to back in large pieces, whatever small ones are asked for."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Self

from mmtrain.data.storage.file import File, Range, read_joined
from mmtrain.data.storage.patience import patiently

_PIECE = 8 << 20
_NUM_KEPT = 2


class ReadAhead:
    """A remote file while all of it is looked at: each piece is fetched once, and by itself again.

    Args:
        file: stays the caller's to close.
        seconds: how long a fault is given to pass, each time.
    """

    def __init__(self, file: File, *, seconds: float) -> None:
        self.path, self.size, self.version = file.path, file.size, file.version
        self._file, self._seconds = file, seconds
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def read(self, offset: int, size: int) -> bytes:
        """See `File.read`."""
        end = min(offset + size, self.size)
        parts = []
        while offset < end:
            number, inside = divmod(offset, _PIECE)
            part = self._piece(number)[inside : inside + end - offset]
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _piece(self, number: int) -> bytes:
        if number not in self._kept:
            begin = number * _PIECE
            attempt = partial(self._file.read, begin, min(_PIECE, self.size - begin))
            piece = patiently(attempt, seconds=self._seconds)
            while len(self._kept) >= _NUM_KEPT:
                self._kept.popitem(last=False)
            self._kept[number] = piece
        return self._kept[number]

    def read_ranges(self, ranges: Sequence[Range]) -> list[memoryview]:
        """See `File.read_ranges`."""
        return read_joined(self, ranges, gap=0)

    def close(self) -> None:
        """Let the pieces go; the file stays open."""
        self._kept.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
