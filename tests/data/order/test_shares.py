"""Shares of a mixture: windows of 1,000 exact, asked anywhere, over every kind of weights."""

import random
from fractions import Fraction

import numpy as np
import pytest

from mmtrain.data.order.shares import WINDOW, Shares, floor_sum

WEIGHTS = [
    (1,),
    (1, 1),
    (1, "1e-4"),
    ("1e-6", 1),
    (9999, 1),
    (1, 1, 1),
    ("2e-4", "2e-4", "0.9996"),
    (1, 1, 1, 1, 1, 1, 1),
    ("0.37", "0.21", "0.2", "0.1", "0.07", "0.04", "0.01"),
    ("0.3333333333333333", "0.3333333333333333", "0.3333333333333334"),
    (0, 1, 2),
]


def fractions(weights) -> list[Fraction]:
    return [Fraction(weight) for weight in weights]


def given(shares: Shares, num: int) -> np.ndarray:
    """[sources, num + 1]: how many of the first n each source has."""
    source_N = shares.sources(0, num)
    is_it_SN = source_N == np.arange(shares.num_sources)[:, None]
    return np.concatenate(
        [np.zeros((shares.num_sources, 1), np.int64), np.cumsum(is_it_SN, axis=1)], axis=1
    )


def random_weights(rng: random.Random) -> list[Fraction]:
    """Whole ones, decimals, ones orders apart, and ones whose share of a window is just below a
    whole number, where a source is one more in nearly every block."""
    num = rng.randint(2, 9)
    kind = rng.randrange(4)
    if kind == 0:
        return [Fraction(rng.randint(1, 20)) for _ in range(num)]
    if kind == 1:
        return [Fraction(str(round(rng.random(), 3) + 0.001)) for _ in range(num)]
    if kind == 2:
        return [Fraction(str(10 ** rng.uniform(-6, 0))) for _ in range(num)]
    near = [Fraction(str(rng.randint(1, 99) + 1 - 10 ** rng.uniform(-6, -1))) for _ in range(num)]
    return [*near, WINDOW - sum(near)]


def check(weights: list[Fraction], num: int, turn: Fraction = Fraction(0)) -> None:
    shares = Shares(weights, turn=turn)
    given_SN = given(shares, num)
    total = sum(weights)
    for source, weight in enumerate(weights):
        share = WINDOW * weight / total
        window = given_SN[source, WINDOW:] - given_SN[source, :-WINDOW]
        assert int(share) <= window.min() and window.max() <= -int(-share // 1), weights
        batch = given_SN[source, 64:] - given_SN[source, :-64]
        assert abs(batch - 64 * float(weight / total)).max() < 3, weights


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_any_window_has_floor_or_ceil_of_each_share(weights):
    check(fractions(weights), 30_000)


def test_any_window_of_random_weights_and_beginnings():
    rng = random.Random(0)
    for _ in range(100):
        check(random_weights(rng), 12_000, Fraction(rng.randint(0, 6), 7))


def test_counts_and_sources_are_the_same_asked_anywhere():
    rng = random.Random(1)
    for _ in range(16):
        weights, turn = random_weights(rng), Fraction(rng.randint(0, 4), 5)
        shares = Shares(weights, turn=turn)
        given_SN, source_N = given(shares, 9000), shares.sources(0, 9000)
        for number in (0, 1, 999, 1000, 1001, rng.randint(0, 9000), 9000):
            assert (
                Shares(weights, turn=turn).counts(number).tolist() == given_SN[:, number].tolist()
            )
        first, count = rng.randint(0, 8000), rng.randint(0, 999)
        assert (shares.sources(first, count) == source_N[first : first + count]).all()


def test_a_whole_cycle_has_exact_shares():
    for weights in ((1, 2, 4), (3, 5, 9), ("0.123", "0.456", "0.421")):
        parts = fractions(weights)
        cycle = np.lcm.reduce([(w / sum(parts)).denominator for w in parts])
        counts = Shares(parts).counts(int(cycle) * WINDOW)
        assert [Fraction(int(c), int(cycle) * WINDOW) for c in counts] == [
            w / sum(parts) for w in parts
        ]


def test_far_away_costs_no_more_and_is_still_even():
    """Behind ten trillion samples, each source is within some samples of its share."""
    weights = fractions(WEIGHTS[8])
    num = 10**13 + 123
    shares = Shares(weights)
    counts = shares.counts(num)
    assert counts.sum() == num
    assert max(abs(int(c) - num * w) for c, w in zip(counts, weights, strict=True)) < 20
    assert (shares.counts(num + 1000) - counts == np.bincount(shares.sources(num, 1000))).all()


def test_the_floor_sum_is_the_sum_of_floors():
    rng = random.Random(2)
    for _ in range(300):
        count, divisor = rng.randint(0, 40), rng.randint(1, 50)
        factor, offset = rng.randint(0, 90), rng.randint(-90, 90)
        plain = sum((factor * x + offset) // divisor for x in range(count))
        assert floor_sum(count, divisor, factor, offset) == plain


def test_weights_may_be_as_far_apart_as_floats_are():
    shares = Shares([Fraction("3e38"), Fraction("1e-300"), Fraction(1)])
    first, *others = shares.counts(10**6).tolist()
    assert first + sum(others) == 10**6 and max(others) <= 1
