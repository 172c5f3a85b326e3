"""The rank that all others wait for, named.

Ranks step together, so the length of a step is the same on all and tells nothing. What differs is
measured by itself: how long each rank waits for its data, and how long a small fixed product takes
on its device (one that is throttled, shared or broken takes longer).
"""

import socket
import statistics
import time
from dataclasses import dataclass

import torch

from mmtrain.ranks import gather

_PROBE_SIZE, _PROBE_REPEATS = 512, 8
_LEAST_SHARE = 0.1
"""A difference below this share of a step holds nobody up."""


@dataclass(frozen=True)
class Pace:
    """Of one rank, since the last look."""

    host: str
    data_seconds: float
    """Waiting for data, mean of a step."""
    probe_seconds: float
    """Of the fixed product."""
    step_seconds: float
    """Mean of a step, waiting included."""


class StragglerWatch:
    """Compares the ranks every so many steps.

    Args:
        factor: a rank is named when it takes more than this many times the median.
        every: steps between two looks; each gathers a few numbers and costs about 10 ms.
        device: where the product runs.
    """

    def __init__(self, *, factor: float, every: int, device: torch.device) -> None:
        self.factor, self.every, self._device = factor, every, device
        self._matrix = torch.ones(_PROBE_SIZE, _PROBE_SIZE, device=device)
        self._waited, self._steps, self._start = 0.0, 0, time.perf_counter()

    def step(self, data_seconds: float) -> list[str]:
        """Count a step -> what there is to say. Collective over all ranks.

        Args:
            data_seconds: that this rank waited for the step's data.
        """
        self._waited, self._steps = self._waited + data_seconds, self._steps + 1
        if self._steps < self.every:
            return []
        passed = time.perf_counter() - self._start
        pace = Pace(
            host=socket.gethostname(),
            data_seconds=self._waited / self._steps,
            probe_seconds=self.probe(),
            step_seconds=passed / self._steps,
        )
        lines = stragglers(gather(pace), factor=self.factor)
        self._waited, self._steps, self._start = 0.0, 0, time.perf_counter()
        return lines

    def probe(self) -> float:
        """Seconds that the fixed product takes; the fastest of a few, as any can be interrupted."""
        times = []
        for _ in range(_PROBE_REPEATS):
            start = time.perf_counter()
            (self._matrix @ self._matrix)[0, 0].item()  # waits for the device
            times.append(time.perf_counter() - start)
        return min(times)


def stragglers(paces: list[Pace], *, factor: float) -> list[str]:
    """A line for each rank that holds the others up.

    The median is the lower one of an even number, so that the faster of two ranks is the measure.
    """
    lines = []
    for what, values, matters in (
        (
            "waits for data",
            [pace.data_seconds for pace in paces],
            # A rank that waits holds the others up by the difference, whatever they do meanwhile.
            lambda excess, step: excess > _LEAST_SHARE * step,
        ),
        (
            "takes for a fixed product on its device",
            [pace.probe_seconds for pace in paces],
            lambda excess, step: True,
        ),
    ):
        median = statistics.median_low(values)
        for rank, (pace, value) in enumerate(zip(paces, values, strict=True)):
            if value > factor * median and matters(value - median, pace.step_seconds):
                lines.append(
                    f"straggler: rank {rank} (host {pace.host}) {what} {1e3 * value:.1f} ms, "
                    f"the median rank {1e3 * median:.1f} ms (train.straggler_factor = {factor:g})"
                )
    return lines
