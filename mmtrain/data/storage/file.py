"""Files that are read at any offset, wherever they are."""

import os
import stat
import weakref
from collections.abc import Sequence
from typing import Protocol, Self

from mmtrain.errors import UsageError

Range = tuple[int, int]
"""Offset and size, in bytes."""

_GAP = 1 << 14


class File(Protocol):
    """A file opened for reading at any offset; pickled by its path."""

    path: str
    """As the user wrote it."""
    size: int
    """Bytes."""
    version: str | None
    """What the store says changes with the content (an etag); None where it says nothing."""

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer only where the file ends.

        Raises:
            OSError: they cannot be read just now; with an errno as a local file's.
            UsageError: the file is another one than was opened.
        """
        ...

    def read_ranges(self, ranges: Sequence[Range]) -> list[memoryview]:
        """Several pieces, in the given order; what stands near each other is read as one.

        Raises:
            OSError, UsageError: as `read`.
        """
        ...

    def close(self) -> None:
        """Give back what is held open; closing twice does no harm."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def refuse_pipe(found: os.stat_result, told: str) -> None:
    """Refuse what can be read from its beginning only, or has no end.

    Args:
        found: of the path.
        told: names it for messages.

    Raises:
        UsageError: it is a pipe, a device or a socket.
    """
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        kind = "pipe" if stat.S_ISFIFO(found.st_mode) else "device"
        raise UsageError(f"{told} is a {kind}, read from its beginning only; write it to a file")


class LocalFile:
    """A file of this machine.

    By `pread`, not by a memory map: a map turns an I/O error, or a file that gets shorter under the
    run, into SIGBUS, which kills the process; here both are errors that can be told and retried.
    The copy costs a few us an image, beside more than a millisecond of decoding.
    """

    def __init__(self, path: str):
        self.path = path
        self.version: str | None = None
        # Without O_NONBLOCK a pipe is waited for; of a file it changes nothing.
        flags = os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
        self._descriptor = os.open(path, flags)
        # Not __del__: as the interpreter ends, `os` may be gone before it runs.
        self._close = weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        refuse_pipe(found, path)
        self.size = found.st_size

    def __reduce__(self) -> tuple[type["LocalFile"], tuple[str]]:
        return LocalFile, (self.path,)

    def read(self, offset: int, size: int) -> bytes:
        """See `File.read`."""
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:  # a signal, or more than the 2 GiB that one call reads
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_ranges(self, ranges: Sequence[Range]) -> list[memoryview]:
        """See `File.read_ranges`."""
        return read_joined(self, ranges, gap=_GAP)

    def fileno(self) -> int:
        """The descriptor, which stays this file's."""
        return self._descriptor

    def close(self) -> None:
        """See `File.close`."""
        self._close()
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_joined(file: File, ranges: Sequence[Range], *, gap: int) -> list[memoryview]:
    """Pieces of a file, those together that have at most `gap` bytes between them."""
    if len(ranges) == 1:
        return [memoryview(file.read(*ranges[0]))]
    found: dict[Range, memoryview] = {}
    for first, size, inside in join_ranges(ranges, gap=gap):
        whole = memoryview(file.read(first, size))
        for piece in inside:
            begin = piece[0] - first
            found[piece] = whole[begin : begin + piece[1]]
    return [found[piece] for piece in ranges]


def join_ranges(ranges: Sequence[Range], *, gap: int) -> list[tuple[int, int, list[Range]]]:
    """Offset and size of the fewest reads that hold all pieces, and which pieces each holds.

    A read goes over `gap` bytes at most between two pieces.
    """
    joined: list[tuple[int, int, list[Range]]] = []
    first, end, inside = 0, -1, []
    for piece in sorted(ranges):
        offset, size = piece
        if inside and offset <= end + gap:
            inside.append(piece)
            if offset + size > end:
                end = offset + size
            continue
        if inside:
            joined.append((first, end - first, inside))
        first, end, inside = offset, offset + size, [piece]
    if inside:
        joined.append((first, end - first, inside))
    return joined
