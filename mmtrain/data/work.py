"""What making batches costs: time by stage, bytes, memory; counted where it is done, told with the
batch."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Literal

Stage = Literal["read", "decode", "resize", "text"]
STAGES: tuple[Stage, ...] = ("read", "decode", "resize", "text")
"""What a batch takes time for; stacking and all else is the rest."""
_MEMORY = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(kw_only=True)
class Work:
    """What one batch took."""

    seconds: float = 0.0
    """From its beginning to its end, in the process that made it."""
    stages: dict[Stage, float] = field(default_factory=dict)
    """Seconds by stage; of several threads the sum."""
    bytes_read: int = 0
    """Of samples' files."""
    bytes_fetched: int = 0
    """That object stores and web servers sent."""
    cache_hits: int = 0
    """Pieces that the cache on disk had."""
    cache_misses: int = 0
    """Pieces that it had to fetch."""
    num_unjoined: int = 0
    """Samples that a place that is joined had no row for."""
    num_shortened: int = 0
    """Dialogues that were read without their oldest turns, which they are too long for."""
    memory: int = 0
    """Resident bytes of that process, those that it shares with others too."""


class Counter:
    """Counts the work of this process, in any of its threads, until somebody takes it."""

    def __init__(self) -> None:
        self._work, self._start = Work(), time.perf_counter()
        self._ahead = 0
        """Bytes that were fetched between two batches, for the one behind."""
        self._is_idle = False
        self._lock = Lock()

    def stage(self, name: Stage) -> "_Timed":
        """Time that is spent within counts for a stage."""
        return _Timed(self, name)

    def spent(self, name: Stage, seconds: float) -> None:
        """Time that a stage took."""
        with self._lock:
            self._work.stages[name] = self._work.stages.get(name, 0.0) + seconds

    def read(self, num_bytes: int) -> None:
        """Bytes that were read."""
        with self._lock:
            self._work.bytes_read += num_bytes

    def fetched(self, num_bytes: int) -> None:
        """Bytes that came over the network."""
        with self._lock:
            if self._is_idle:
                self._ahead += num_bytes
            else:
                self._work.bytes_fetched += num_bytes

    def looked_up(self, *, is_there: bool) -> None:
        """The cache was asked for a piece."""
        with self._lock:
            self._work.cache_hits += is_there
            self._work.cache_misses += not is_there

    def missed(self) -> None:
        """A sample had no row in a place that is joined."""
        self._work.num_unjoined += 1

    def shortened(self, *, is_shorter: bool) -> None:
        """A dialogue was read, without its oldest turns or whole."""
        with self._lock:
            self._work.num_shortened += is_shorter

    def restart(self) -> None:
        """Other batches begin than those before: what was fetched ahead of these is not theirs."""
        with self._lock:
            self._ahead = 0

    def begin(self) -> None:
        """A batch begins; what was counted before the first is forgotten."""
        with self._lock:
            self._work, self._start = Work(bytes_fetched=self._ahead), time.perf_counter()
            self._ahead, self._is_idle = 0, False

    def end(self) -> Work:
        """The batch is made -> what it took, and what was fetched ahead since the one before."""
        with self._lock:
            self._is_idle = True
        self._work.seconds = time.perf_counter() - self._start
        self._work.memory = resident_bytes()
        return self._work


class _Timed:
    """A context; a generator would take twice the time, several times a sample."""

    __slots__ = ("_counter", "_name", "_start")

    def __init__(self, counter: Counter, name: Stage) -> None:
        self._counter = counter
        self._name: Stage = name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._counter.spent(self._name, time.perf_counter() - self._start)


COUNTER = Counter()
"""This process's."""


def resident_bytes() -> int:
    """Memory that this process has; 0 where the system does not tell."""
    try:
        return int(_MEMORY.read_text().split()[1]) * _PAGE
    except OSError:
        return 0
