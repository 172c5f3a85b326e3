"""Intervals of a mean against scipy's, and which one is taken."""

import numpy as np
import pytest
from scipy import stats

from mmtrain.eval.intervals import bootstrap_interval, mean_interval, wilson_interval
from mmtrain.eval.outcomes import Outcome


def outcomes(scores: list[float], images: list[int]) -> list[Outcome]:
    return [
        Outcome(metric="m", id=str(n), image=str(image), score=score)
        for n, (score, image) in enumerate(zip(scores, images, strict=True))
    ]


def test_wilsons_interval_is_scipys_on_1000_drawn_counts():
    draw = np.random.default_rng(0)
    for num in draw.integers(1, 3000, 1000).tolist():
        right = int(draw.integers(0, num + 1))
        want = stats.binomtest(right, num).proportion_ci(method="wilson")
        found = wilson_interval(right, num)
        assert found[:2] == pytest.approx((want.low, want.high), abs=1e-12)


def test_the_data_tell_which_interval_it_is():
    draw = np.random.default_rng(1)
    scores, alone = draw.integers(0, 2, 80).astype(float).tolist(), list(range(80))
    found = mean_interval(outcomes(scores, alone))
    assert found == wilson_interval(int(sum(scores)), 80)
    # Answers between right and wrong, and images with several questions, are resampled.
    for some, images in (
        ([0.3 * score for score in scores], alone),
        (scores, [n // 4 for n in alone]),
    ):
        found = mean_interval(outcomes(some, images))
        assert found is not None and found.method == "bootstrap"
        assert found[:2] == bootstrap_interval(np.array(some), np.array(images))
        assert found.low < np.mean(some) < found.high
    # All right about 20 images is as sure as 20 images are, not as their 80 questions.
    found = mean_interval(outcomes([1.0] * 80, [n // 4 for n in alone]))
    assert found == wilson_interval(20, 20) and found.low < 0.9
    assert mean_interval(outcomes([0.0, 1.0], [3, 3])) is None
    assert mean_interval([]) is None
