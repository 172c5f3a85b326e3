"""Schedules against open_clip's formulas, written out for every step."""

import math

import pytest

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


def test_warmup_longer_than_the_run():
    assert factors(warmup_steps=1000) == [(step + 1) / TOTAL for step in range(TOTAL)]
