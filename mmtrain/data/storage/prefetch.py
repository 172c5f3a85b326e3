"""What the plan wants next is brought into the cache while batches are made.

By threads of each process that makes batches. They need not agree: a piece that another thread or
process is bringing is passed over, so several walk the same plan side by side and each piece is
fetched once. What fails here is left to whoever reads it, and told there.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.cached import CachedFile
from mmtrain.data.storage.piece import Piece
from mmtrain.errors import UsageError

Coming = Callable[[], Iterable[CachedFile | Piece]]
"""What is wanted next, soonest first: files, of which all pieces are, or pieces; asked in another
thread."""

_THREADS, _RANGE_THREADS = 2, 8
"""Large pieces come as fast by two; small ones wait for the network."""
_SHARE = 2
"""Of the cache's bytes one in so many is fetched ahead: evictions then drop none of it, since what
is wanted soonest goes last."""
_BELIEVED = 30.0
"""Seconds for which a file that was there whole is not looked for again."""
_REST = 200.0
"""Where nothing was missing, a look at what is wanted rests so many times as long as it took: of a
large cache it is thousands of files."""


class Prefetch:
    """Threads that fetch ahead, begun where something is wanted. Safe to pickle and to fork.

    Args:
        cache: where it goes.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._num_running, self._coming = 0, None
        self._state, self._turn = threading.Lock(), threading.Lock()
        self._pieces: Iterator[Piece] = iter(())
        self._whole: dict[Path, float] = {}
        self._is_off = False
        self._threads = _THREADS if self._cache.whole else _RANGE_THREADS
        self._looked, self._found_any, self._rests_until = 0.0, False, 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._cache = state["_cache"]
        self._begin()

    def want(self, coming: Coming) -> None:
        """Go on with these files; what was wanted before counts no more."""
        if self._owner != os.getpid():  # a fork has none of the threads
            self._begin()
        if self._is_off or time.monotonic() < self._rests_until:
            return
        with self._state:
            self._coming = coming
            self._pool = self._pool or ThreadPoolExecutor(self._threads)
            missing, self._num_running = self._threads - self._num_running, self._threads
        for _ in range(missing):
            self._pool.submit(self._step)

    def stop(self) -> None:
        """Fetch nothing more than what is on its way."""
        if self._owner == os.getpid():
            with self._state:  # asks for no thread: the interpreter may have ended them
                self._coming = tuple

    def _step(self) -> None:
        """Bring one piece, then let the pool take the next: between two it may end."""
        assert self._pool is not None
        piece = self._next()
        if piece is None:
            return
        try:
            # Never on again: a piece that somebody else brings says nothing of the room.
            if not self._cache.fetch(piece):
                self._is_off = True
        except (OSError, UsageError):  # the reader of these bytes meets it too, and tells it
            with self._turn:
                self._pieces = iter(())
        try:
            self._pool.submit(self._step)
        except RuntimeError:
            return  # the interpreter ends

    def _next(self) -> Piece | None:
        """What to fetch; None: nothing is left, and this thread is done until more is wanted."""
        with self._turn:
            while True:
                with self._state:
                    coming, self._coming = self._coming, None
                began = time.thread_time()
                if coming is not None:
                    self._looked, self._found_any = 0.0, False
                    self._pieces = self._missing(coming())
                piece = None if self._is_off else next(self._pieces, None)
                self._looked += time.thread_time() - began
                self._found_any = self._found_any or piece is not None
                with self._state:
                    if piece is None and self._coming is None:
                        if not self._found_any:
                            self._rests_until = time.monotonic() + _REST * self._looked
                        self._num_running -= 1
                        return None
                if piece is not None:
                    return piece

    def _missing(self, coming: Iterable[CachedFile | Piece]) -> Iterator[Piece]:
        """The pieces that are not there, as far on as may be fetched ahead."""
        room = self._cache.max_bytes // _SHARE
        for file in coming:
            if isinstance(file, Piece):
                room -= file.size
                if room < 0:
                    return
                if not os.path.exists(file.path):
                    yield file
                continue
            if time.monotonic() - self._whole.get(file.place, -_BELIEVED) < _BELIEVED:
                room -= file.size
                continue
            there, is_whole = _names(file.place), True
            for piece in file.pieces():
                room -= piece.size
                if room < 0:
                    return
                if piece.name not in there:
                    is_whole = False
                    yield piece
            if is_whole:
                self._whole[file.place] = time.monotonic()


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
