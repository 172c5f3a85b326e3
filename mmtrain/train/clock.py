"""Where a run's time goes."""

import time
from collections.abc import Iterator

from mmtrain.data.batch import SampleBatch


class Clock:
    """Where the time between two log lines went."""

    def __init__(self) -> None:
        self.last_wait = 0.0
        """Seconds until the newest batch was there."""
        self.waited = 0.0
        """Seconds until batches were there, of all of them."""
        self._began = time.perf_counter()
        self.restart()

    def restart(self) -> None:
        """Begin a new interval: after a log line, a checkpoint or an evaluation."""
        self._start, self._waited, self._samples = time.perf_counter(), 0.0, 0

    def wait_for(self, batches: Iterator[SampleBatch]) -> SampleBatch | None:
        """The next batch, None at the end; the time until it is there counts as waiting."""
        start = time.perf_counter()
        batch = next(batches, None)
        self.last_wait = time.perf_counter() - start
        self._waited += self.last_wait
        self.waited += self.last_wait
        return batch

    @property
    def passed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._began

    def count(self, samples: int) -> None:
        """Note samples of a finished step."""
        self._samples += samples

    def figures(self) -> dict[str, float]:
        """Samples per second over all ranks, and the share of the time spent waiting for data."""
        passed = max(time.perf_counter() - self._start, 1e-9)
        return {
            "samples_per_second": self._samples / passed,
            "data_wait_fraction": self._waited / passed,
        }
