"""A bounded copy on disk of what was fetched, shared by the processes of a machine.

Nothing in it is believed: a piece is read only where its length is right and each block's checksum
too; whatever is wrong with the folder, the bytes come from where they are kept. A piece is fetched
by one process, under a lock that the system drops with the process, and gets its name when it is
whole. So a kill, a full disk, a deleted file or another job make a run slower and nothing else.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

from mmtrain.data.storage.bound import make_folder, unwritable
from mmtrain.data.storage.evict import PARTIAL, Budget, drop
from mmtrain.data.storage.piece import OpenPiece, Piece, seal_of
from mmtrain.data.work import COUNTER

_LARGEST_PIECE, _SMALLEST_PIECE = 8 << 20, 1 << 16
_LEAST_PIECES = 16
_MOST_OPEN = 256
"""Pieces that a process keeps open: of the largest 2 GiB."""
_PATIENCE = 60.0


class Cache:
    """The folder; safe to pickle and to fork.

    Args:
        folder: made if it is not there.
        max_bytes: of all files in it, those that are being written too.
        whole: fetch large pieces, since most of each file will be read here; False: exactly what is
            read, since other machines read the rest.
        prefix: of the settings' names, for messages.
        budget: of the same folder, where another cache has it too: what both will read is then
            known when either needs room.

    Raises:
        UsageError: the folder cannot be written, or its disk is smaller than `max_bytes`.
    """

    def __init__(
        self,
        folder: str,
        *,
        max_bytes: int,
        whole: bool = True,
        prefix: str = "data.",
        budget: Budget | None = None,
    ) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        self.piece = _SMALLEST_PIECE
        while self.piece < _LARGEST_PIECE and 2 * self.piece * _LEAST_PIECES <= max_bytes:
            self.piece *= 2
        self.whole = whole
        self.budget = budget or Budget(self.folder, max_bytes=max_bytes)
        self._begin()
        self.prepare(prefix)

    def _begin(self) -> None:
        self._opening, self._opened = Lock(), dict[str, OpenPiece]()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opening": None, "_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._begin()

    def prepare(self, prefix: str) -> None:
        """Make the folder and count what is in it.

        Args:
            prefix: of the settings' names, for messages.

        Raises:
            UsageError: it cannot be written, or its disk is smaller than `max_bytes`.
        """
        make_folder(self.folder, self.max_bytes, prefix)
        try:
            self.budget.count_anew()
        except OSError as error:
            raise unwritable(self.folder, error, prefix) from error

    def folder_of(self, path: str, size: int, version: str) -> Path:
        """Where the pieces of one file are: another content of it has another place."""
        return self.folder / folder_name(path, size, version).hex()

    def read(self, piece: Piece, first: int, size: int) -> bytes:
        """Bytes of one piece, fetched if it is not there.

        Args:
            piece: of a file.
            first: where they begin inside the piece.
            size: how many.

        Raises:
            OSError, UsageError: as of the file.
        """
        found = self._look_up(piece, first, size)
        COUNTER.looked_up(is_there=found is not None)
        if found is not None:
            return found
        with self._sole(Path(piece.path), seconds=_PATIENCE) as descriptor:
            if descriptor is None:
                # Somebody else brought it, or it cannot be kept.
                found = self._look_up(piece, first, size)
                if found is None:
                    found = piece.file.read(piece.offset + first, size)
                return found
            whole = piece.file.read(piece.offset, piece.size)
            self._keep(Path(piece.path), descriptor, whole)
        return whole[first : first + size]

    def fetch(self, piece: Piece) -> bool:
        """Bring a piece that will be read, unless it is there or somebody else is bringing it.

        Returns:
            False: it could not be kept, so what is fetched ahead is fetched in vain.

        Raises:
            OSError, UsageError: as of the file.
        """
        with self._sole(Path(piece.path), seconds=0.0) as descriptor:
            if descriptor is None:
                return True
            return self._keep(
                Path(piece.path), descriptor, piece.file.read(piece.offset, piece.size)
            )

    def _look_up(self, piece: Piece, first: int, size: int) -> bytes | None:
        """Bytes of a piece that is there and sound; one that is not sound is removed."""
        opened = self._opened.get(piece.path)
        if opened is not None:
            found = opened.read(first, size)
            if found is not None and opened.is_still_kept():
                return found
            with self._opening:
                self._opened.pop(piece.path, None)  # dropped; perhaps another one is there
        try:
            opened = OpenPiece(piece)
        except OSError:
            return None
        found = opened.read(first, size)
        if found is None:
            with contextlib.suppress(OSError):
                drop(piece.path)
        elif opened.is_still_kept() and self.whole:
            self._keep_open(piece.path, opened)
        return found

    def _keep_open(self, path: str, opened: OpenPiece) -> None:
        """The next look-up is then one call of the system, as a read from a disk is."""
        with self._opening:
            while len(self._opened) >= _MOST_OPEN:
                del self._opened[next(iter(self._opened))]
            self._opened[path] = opened

    @contextlib.contextmanager
    def _sole(self, path: Path, *, seconds: float) -> Iterator[int | None]:
        """The descriptor of a piece to be written, which nobody else has, waited for for so long;
        None: do not."""
        partial, descriptor = path.with_name(path.name + PARTIAL), None
        try:
            path.parent.mkdir(exist_ok=True)
            descriptor = _locked(partial, seconds=seconds)
            if descriptor is not None and path.exists():
                _let_go(descriptor, partial)
                descriptor = None
        except OSError:
            pass  # such as a full disk: what is wanted is then read past the cache
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                _let_go(descriptor, partial)

    def _keep(self, path: Path, descriptor: int, data: bytes) -> bool:
        """Write a piece and give it its name; False: that failed, which leaves nothing."""
        parts = {0: data, len(data): seal_of(data)}
        size = sum(map(len, parts.values()))
        try:
            os.ftruncate(descriptor, 0)  # what a process that was killed left
            if not self.budget.make_room(size, descriptor=descriptor):
                return False
            if sum(os.pwrite(descriptor, part, at) for at, part in parts.items()) < size:
                return False
            os.replace(path.with_name(path.name + PARTIAL), path)
        except OSError:
            return False
        return True


def folder_name(path: str, size: int, version: str) -> bytes:
    """What the folder of a file's pieces is called, in hexadecimal digits: 16 bytes."""
    return hashlib.blake2b(f"{path}\n{size}\n{version}".encode(), digest_size=16).digest()


def _let_go(descriptor: int, partial: Path) -> None:
    """Give up what was to be written; the name is gone already where it was."""
    with contextlib.suppress(OSError):
        if os.stat(partial).st_ino == os.fstat(descriptor).st_ino:
            partial.unlink()
    os.close(descriptor)


def _locked(partial: Path, *, seconds: float) -> int | None:
    """A file that is written here alone; None where another has done it, or takes too long."""
    end = time.monotonic() + seconds
    is_first = True
    while is_first or time.monotonic() < end:
        is_first = False
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            is_ours = _try_lock(descriptor, end)
            # Who had it may have given it its name, or removed it.
            if is_ours and os.stat(partial).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    return None


def _try_lock(descriptor: int, end: float) -> bool:
    pause = 0.002
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
