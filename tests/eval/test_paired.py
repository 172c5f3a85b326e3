"""Paired statistics against scipy's, and against plain resampling where it has none."""

import numpy as np
import pytest
from scipy import stats

from mmtrain.eval.intervals import bootstrap_interval
from mmtrain.eval.paired import compare_paired, mcnemar


def test_mcnemar_is_the_exact_binomial_test():
    draw = np.random.default_rng(0)
    for size in (3, 30, 400):
        for only_a, only_b in draw.integers(0, size, (400, 2)).tolist():
            if only_a + only_b:
                want = stats.binomtest(only_a, only_a + only_b).pvalue
                assert mcnemar(only_a, only_b) == pytest.approx(want, rel=1e-8, abs=1e-300)
    assert mcnemar(0, 0) == 1
    assert 0 < mcnemar(4000, 5000) < 1e-20


@pytest.mark.parametrize("scores", [(0, 1), (0, 0.3, 0.6, 0.9, 1)])
def test_the_interval_is_scipys_where_every_sample_is_an_image(scores):
    for seed in range(8):
        draw = np.random.default_rng(seed)
        num = int(draw.integers(40, 400))
        a, b = draw.choice(scores, num), draw.choice(scores, num)
        found = bootstrap_interval(b - a, np.arange(num))
        want = stats.bootstrap(
            (b - a,), np.mean, n_resamples=10_000, method="percentile", rng=draw, batch=500
        ).confidence_interval
        width = want.high - want.low
        assert found == pytest.approx((want.low, want.high), abs=0.06 * width)


def resampled(value: np.ndarray, image: np.ndarray, draw: np.random.Generator):
    """The cluster bootstrap as a textbook has it: images drawn one by one, then averaged."""
    names = np.unique(image)
    sums = np.array([value[image == name].sum() for name in names])
    counts = np.array([(image == name).sum() for name in names])
    drawn = draw.integers(0, names.size, (10_000, names.size))
    return np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])


@pytest.mark.parametrize("seed", range(6))
def test_images_are_drawn_whole(seed: int):
    """Against resampling image by image, with images of one to nine questions that agree."""
    draw = np.random.default_rng(seed)
    images = int(draw.integers(20, 120))
    num_C = draw.integers(1, 10, images)
    image = np.repeat(draw.permutation(images), num_C)
    difference = np.repeat(draw.choice([-1.0, 0.0, 0.5, 1.0], images), num_C)
    order = draw.permutation(image.size)
    image, difference = image[order], difference[order]
    low, high = resampled(difference, image, draw)
    found = bootstrap_interval(difference, image)
    assert found == pytest.approx((low, high), abs=0.06 * (high - low))
    alone = bootstrap_interval(difference, np.arange(image.size))
    assert alone is not None and alone[1] - alone[0] < 0.7 * (high - low)
    # What the images are called changes no bit.
    assert bootstrap_interval(difference, 7 * (images - image)) == found
    assert bootstrap_interval(difference, np.zeros(image.size, np.int64)) is None


def test_a_thousand_drawn_tables_are_scipys():
    draw = np.random.default_rng(11)
    for size in draw.choice([2, 9, 60, 700], 1000):
        cells = draw.multinomial(size, draw.dirichlet(np.ones(4)))
        a = np.repeat([1.0, 1.0, 0.0, 0.0], cells)
        b = np.repeat([1.0, 0.0, 1.0, 0.0], cells)
        # All of one image: what is tested here is not the interval.
        found = compare_paired(a, b, np.zeros(size, np.int64))
        table = stats.contingency.crosstab(a, b, levels=([1, 0], [1, 0])).count
        assert found.table == tuple(table.ravel())
        only_a, only_b = int(table[0, 1]), int(table[1, 0])
        uneven = only_a + only_b
        want = stats.binomtest(only_a, uneven).pvalue if uneven else 1.0
        assert found.p_value == pytest.approx(want, rel=1e-8)
        assert found.difference == pytest.approx((only_b - only_a) / size)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Images that pull all their questions along; 200 sets, of which 95 % should be covered."""
    draw, covered = np.random.default_rng(5), 0
    for _ in range(200):
        difference = np.repeat(draw.choice((-0.5, 0.0, 0.6), 80), 5)
        difference += draw.choice((-0.5, 0.5), 400)
        low, high = bootstrap_interval(difference, np.repeat(np.arange(80), 5)) or (0, 0)
        covered += low <= 0.1 / 3 <= high
    assert 0.90 < covered / 200 < 0.99


def test_a_table_is_counted_where_answers_are_right_or_wrong():
    a = np.array([1.0, 1, 0, 0, 1, 0])
    b = np.array([1.0, 0, 1, 0, 1, 1])
    found = compare_paired(a, b, np.arange(6))
    assert found.table == (2, 1, 2, 1) and found.p_value == 1.0
    assert found.difference == pytest.approx(1 / 6)
    soft = compare_paired(0.9 * a, b, np.arange(6))
    assert soft.table is None and soft.p_value is None and soft.interval is not None
