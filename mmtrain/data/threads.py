"""The rows of a batch made side by side, in threads of the process that makes the batch.

Decoders, resizes, disks and networks let other threads run. So one process keeps several cores
busy, and what waits for a network waits for many samples at once.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

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
        asked = [self._pool.submit(copy_context().run, make, item) for item in items]
        try:
            return [one.result() for one in asked]
        finally:
            for one in asked:
                one.cancel()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None, "_owner": 0}
