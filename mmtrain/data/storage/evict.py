"""How many bytes the files of a folder may have, and which go first, over all its processes."""

import fcntl
import os
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

NextUse = Callable[[Collection[str]], Mapping[str, int]]
"""Of the folders of files' pieces that are there, those that are known -> how far off their next
use is; those that nobody names come last."""

PARTIAL = ".partial"
"""Ends the name of what is being written."""
_COUNT = ".bytes"
_ABANDONED = 600.0
_LEAVES = 0.9
"""Part of the room that is still full after an eviction: the next one is not due at once."""


class _Kept(NamedTuple):
    folder: str
    path: str
    size: int
    used: float


class Budget:
    """The bytes of a folder, counted in a file that the processes change under its lock.

    A process that dies may leave the count too high or too low; every eviction and every start
    counts anew.

    Args:
        folder: holds folders of files.
        max_bytes: at most, those that are being written too.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self.next_uses: dict[Hashable, NextUse] = {}
        """By who reads through it."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"next_uses": {}}

    def count_anew(self) -> None:
        """Make the count that of the files there.

        Raises:
            OSError: the folder cannot be written.
        """
        with self._count() as descriptor:
            _write(descriptor, self._evict(0))

    def make_room(self, size: int, *, descriptor: int) -> bool:
        """Count bytes that are about to be written, dropping others; False: there is no room.

        Args:
            size: bytes.
            descriptor: of the file that they will be in, which gets this length: so another
                process that counts anew sees them too.

        Raises:
            OSError: the folder cannot be written.
        """
        if size > self._max_bytes:
            return False
        with self._count() as count:
            total = _read(count)
            if total is None or total + size > self._max_bytes:
                total = self._evict(size)
            fits = total + size <= self._max_bytes
            _write(count, total + size * fits)
            if fits:  # behind the count: a kill in between leaves that too high, never too low
                os.ftruncate(descriptor, size)
            return fits

    @contextmanager
    def _count(self) -> Iterator[int]:
        descriptor = os.open(self._folder / _COUNT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _evict(self, size: int) -> int:
        """Drop what is wanted last until `size` bytes fit; the bytes that are left."""
        kept = list(self._files())
        total = sum(each.size for each in kept)
        if total + size <= self._max_bytes:
            return total
        there = {each.folder for each in kept}
        uses = (use(there) for use in self.next_uses.values())
        distance = {name: far for use in uses for name, far in use.items()}
        last = max(distance.values(), default=0) + 1
        # Farthest first; among what no plan names, what was used longest ago.
        kept.sort(key=lambda each: (-distance.get(each.folder, last), each.used))
        for each in kept:
            if each.path.endswith(PARTIAL):
                continue
            if total + size <= _LEAVES * self._max_bytes:
                break
            with suppress(OSError):
                drop(each.path)
            total -= each.size
        return total

    def _files(self) -> Iterator[_Kept]:
        """Every file of a piece; one that nobody finished is removed."""
        now = time.time()
        for folder in list(os.scandir(self._folder)):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in list(os.scandir(folder.path)):
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(PARTIAL) and now - found.st_mtime > _ABANDONED:
                        os.unlink(entry.path)
                        continue
                    yield _Kept(folder.name, entry.path, found.st_size, found.st_mtime)


def drop(path: str) -> None:
    """Remove a piece, and give back its room although a process may have it open.

    Raises:
        OSError: it is not there, or cannot be removed.
    """
    with suppress(OSError):  # another user's
        os.truncate(path, 0)
    os.unlink(path)


def _read(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0)
    return int(text) if text.isdigit() else None


def _write(descriptor: int, total: int) -> None:
    text = str(max(0, total)).encode()
    os.ftruncate(descriptor, len(text))
    os.pwrite(descriptor, text, 0)
