"""Python's collection of garbage at chosen steps.

Left to itself it looks through all objects of the process when it likes, some tenths of a second,
in a step of one rank, for which the others wait. What a step leaves in cycles holds no tensor.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


class GarbageCollection:
    """Within the context Python collects garbage where it is told to.

    Args:
        every: steps between collections, the same on all ranks. None: whenever Python likes.
    """

    def __init__(self, every: int | None) -> None:
        self._every, self._before = every, gc.isenabled()

    def __enter__(self) -> "GarbageCollection":
        self._before = gc.isenabled()
        if self._every is not None:
            gc.collect()
            gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            gc.enable()

    def step(self, number: int) -> None:
        """A step was done: collect, if this is one of those, what is younger than the last time."""
        if self._every is not None and number % self._every == 0:
            gc.collect(1)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Within the context it is Python's again, for what takes long and is no step."""
        if self._before:
            gc.enable()
        try:
            yield
        finally:
            if self._every is not None:
                gc.disable()
