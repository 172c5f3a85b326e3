"""The rows of a batch made side by side, in threads of the process that makes the batch.

Decoders, resizes, disks and networks let other threads run. So one process keeps several cores
busy, and what waits for a network waits for many samples at once.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Generic, TypeVar

ItemT = TypeVar("ItemT")
MadeT = TypeVar("MadeT")


class Threads:
    """A number of threads, begun where they are first wanted. Safe to pickle and to fork.

    Args:
        number: 1: none, all is done in the caller's.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool: ThreadPoolExecutor | None = None
        self._owner = 0

    def map(self, make: Callable[[ItemT], MadeT], items: Iterable[ItemT]) -> list[MadeT]:
        """What `make` makes of each item, in their order; an exception of the first that has one.

        Other threads see the caller's context variables.
        """
        if self.number == 1:
            return [make(item) for item in items]
        if self._pool is None or self._owner != os.getpid():  # a fork has none of the threads
            self._pool, self._owner = ThreadPoolExecutor(self.number), os.getpid()
        turn = _Turn(make, list(items))
        asked = [
            self._pool.submit(copy_context().run, turn.take)
            for _ in range(min(self.number, len(turn.items)))
        ]
        try:
            for one in asked:
                one.result()
        finally:
            turn.stop()
            for one in asked:
                one.cancel()
        return turn.result()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None, "_owner": 0}


class _Turn(Generic[ItemT, MadeT]):
    """Items that threads take one by one, each when it is done with the one before: what a thread
    is asked costs more than what it takes by itself."""

    def __init__(self, make: Callable[[ItemT], MadeT], items: Sequence[ItemT]) -> None:
        self.items = items
        self._make, self._numbers = make, iter(range(len(items)))
        self._made: dict[int, MadeT] = {}
        self._failed: dict[int, Exception] = {}

    def take(self) -> None:
        """Make what is left, together with the other threads that do so."""
        while (number := next(self._numbers, None)) is not None:  # one thread has each number
            try:
                self._made[number] = self._make(self.items[number])
            except Exception as error:
                self._failed[number] = error
                self.stop()

    def stop(self) -> None:
        """Let nothing more be taken."""
        self._numbers = iter(())

    def result(self) -> list[MadeT]:
        """What was made, in the order of the items; or the exception of the first that has one,
        which is the same one however the threads run: all before it were taken."""
        if self._failed:
            raise self._failed[min(self._failed)]
        return [self._made[number] for number in range(len(self.items))]
