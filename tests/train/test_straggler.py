"""The rank that all others wait for is named, and no other."""

from dataclasses import replace

import torch

from mmtrain.train.straggler import Pace, StragglerWatch, stragglers
from tests.ranks import run_ranks

USUAL = Pace(host="a", data_seconds=0.01, probe_seconds=0.002, step_seconds=0.5)


def test_slow_device_and_slow_data_are_named() -> None:
    """One of many, and the slower of two."""
    hot = replace(USUAL, host="hot", probe_seconds=0.005)
    starved = replace(USUAL, host="starved", data_seconds=0.2)
    lines = stragglers([USUAL, hot, USUAL, starved], factor=2.0)
    assert len(lines) == 2
    assert "rank 3 (host starved) waits for data 200.0 ms, the median rank 10.0 ms" in lines[0]
    assert "rank 1 (host hot) takes" in lines[1] and "5.0 ms" in lines[1]
    (line,) = stragglers([hot, USUAL], factor=2.0)
    assert "rank 0" in line


def test_what_holds_nobody_up_is_not_named() -> None:
    """Below the factor; or a wait ten times the median that is nothing beside the step."""
    assert not stragglers([USUAL, replace(USUAL, probe_seconds=0.0039)], factor=2.0)
    assert not stragglers([USUAL, replace(USUAL, data_seconds=0.04)], factor=2.0)
    assert not stragglers([USUAL], factor=2.0)


def watch(rank: int) -> None:
    """Rank 1's device is slow; both hear of it, at the third step."""
    pace = StragglerWatch(factor=3.0, every=3, device=torch.device("cpu"))
    assert pace.probe() > 0
    pace.probe = lambda: (0.001, 0.004)[rank]
    lines = [pace.step(0.0) for _ in range(6)]
    for step, some in enumerate(lines, 1):
        assert len(some) == (step % 3 == 0) and all("rank 1 " in line for line in some)


def test_ranks_compare() -> None:
    """Two ranks."""
    run_ranks(watch, 2)
