"""What the front-door benchmark says of a difference over seeds."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.seeds import compare_seeds, smallest_effect
from mmtrain.eval.outcomes import Outcome
from mmtrain.eval.result import EvalResult, write_result


def write(path: Path, score_N: np.ndarray) -> Path:
    """A result of three questions a picture, the first of each of kind a."""
    outcomes = [
        Outcome(
            metric="accuracy",
            id=f"{n:03}",
            image=f"{n // 3}",
            score=float(score),
            kinds={"question_type": "a" if n % 3 == 0 else "b"},
        )
        for n, score in enumerate(score_N)
    ]
    figures = {"accuracy": float(score_N.mean())}
    write_result(path, EvalResult(figures=figures, best=[], worst=[], outcomes=tuple(outcomes)))
    return path


def test_a_difference_is_that_of_scipys_paired_t(tmp_path: Path):
    draw = np.random.default_rng(0)
    a_SN, b_SN = (draw.random((5, 60)) < chance for chance in (0.5, 0.7))
    files = [
        [write(tmp_path / f"{arm}{seed}.json", row) for seed, row in enumerate(score_SN)]
        for arm, score_SN in (("a", a_SN), ("b", b_SN))
    ]
    for kind, some in ((None, slice(None)), ("a", slice(0, None, 3))):
        found = compare_seeds(files[0], files[1], kind)
        each = 100 * (b_SN[:, some].mean(1) - a_SN[:, some].mean(1))
        low, high = stats.ttest_1samp(each, 0).confidence_interval(0.95)
        assert found.mean == pytest.approx(each.mean())
        assert found.mean - found.half == pytest.approx(low)
        assert found.mean + found.half == pytest.approx(high)
        assert found.pictures[0] < found.mean < found.pictures[1]
        assert str(found).startswith("**") == (low > 0 or high < 0)


@pytest.mark.parametrize("num", [3, 5])
def test_the_smallest_effect_is_found_four_times_in_five(num: int):
    draw = np.random.default_rng(num)
    shift = smallest_effect(num) / num**0.5
    p = stats.ttest_1samp(draw.normal(shift, 1, (40_000, num)), 0, axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.008)
    bound = stats.t.ppf(0.975, num - 1)
    assert stats.nct.sf(bound, num - 1, smallest_effect(num)) == pytest.approx(0.8, abs=1e-3)
