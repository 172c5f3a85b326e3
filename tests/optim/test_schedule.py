"""Schedules against open_clip's formulas, written out for every step."""

import math

import pytest
import torch

from mmtrain.errors import UsageError
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.schedule import lr_factor

TOTAL = 50


def factors(**settings):
    config = OptimConfig(**settings)
    return [lr_factor(step, total_steps=TOTAL, config=config) for step in range(TOTAL)]


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine(warmup, floor):
    expected = [
        (step + 1) / warmup
        if step < warmup
        else floor
        + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (TOTAL - warmup)))
        for step in range(TOTAL)
    ]
    assert factors(warmup_steps=warmup, min_lr_fraction=floor) == pytest.approx(expected, abs=1e-15)


def test_constant():
    assert factors(schedule="constant", warmup_steps=4) == [0.25, 0.5, 0.75, *[1.0] * (TOTAL - 3)]


def test_wsd():
    """open_clip's const-cooldown with power 1: 10 of 50 steps fall from 1 to the floor."""
    expected = [1.0] * 40 + [(1 - k / 10) * (1 - 0.2) + 0.2 for k in range(10)]
    got = factors(schedule="wsd", warmup_steps=0, decay_fraction=0.2, min_lr_fraction=0.2)
    assert got == pytest.approx(expected, abs=1e-15)


def test_wsd_longer_than_what_the_warmup_leaves():
    got = factors(schedule="wsd", warmup_steps=20, decay_fraction=1.0)
    assert got[19:21] == [1.0, 1.0]
    assert got[-1] == pytest.approx(1 / 30)


def test_warmup_fraction_and_default():
    assert factors(warmup_fraction=0.2) == factors(warmup_steps=10)
    assert factors() == factors(warmup_steps=5)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [TOTAL, TOTAL + 1, 1000])
def test_warmup_longer_than_the_run(schedule, warmup):
    """The steps of a try are the first ones of the long run, as in open_clip."""
    wanted = [(step + 1) / warmup for step in range(TOTAL)]
    assert factors(warmup_steps=warmup, schedule=schedule) == wanted


@pytest.mark.parametrize("warmup", [0, 2, 4, 9])
@pytest.mark.parametrize(("schedule", "end"), [("cosine", 0.1), ("wsd", 0.1), ("constant", 1.0)])
def test_torch_may_ask_for_the_end(schedule, end, warmup):
    """`LambdaLR.step` behind the last update asks for the step of the whole run."""
    floor = {} if schedule == "constant" else {"min_lr_fraction": end}
    config = OptimConfig(schedule=schedule, warmup_steps=warmup, **floor)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=2.0)
    follows = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, total_steps=4, config=config)
    )
    for step in range(4):
        assert follows.get_last_lr() == [2 * lr_factor(step, total_steps=4, config=config)]
        optimizer.step()
        follows.step()
    at_end = end if warmup < 4 else min(1.0, 5 / warmup)
    assert follows.get_last_lr() == pytest.approx([2 * at_end])
    for step in (-1, 5):
        with pytest.raises(
            UsageError, match=rf"step = {step} must be within 0 and total_steps = 4"
        ):
            lr_factor(step, total_steps=4, config=config)
