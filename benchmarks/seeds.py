"""Two ways of training, seed by seed: their difference, how sure it is, and what could be seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import optimize, stats

from mmtrain.eval.outcomes import read_outcomes
from mmtrain.eval.paired import compare_paired

POWER = 0.8
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """B - A, in points."""

    mean: float
    """Over seeds and questions."""
    half: float
    """Half of the 95 % interval over the seeds, Student's t: what other seeds would give."""
    pictures: tuple[float, float]
    """95 % interval over the pictures, of these models: the bootstrap of `mmtrain compare` over the
    questions of all seeds, a picture drawn with all of them."""
    seen: float
    """The smallest true difference that the t-test finds with chance POWER."""

    @property
    def is_seen(self) -> bool:
        """Whether the interval over the seeds leaves out 0."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        text = f"{self.mean:+.2f} ± {self.half:.2f}"
        low, high = self.pictures
        shown = f"**{text}**" if self.is_seen else text
        return f"{shown} ({low:+.2f} to {high:+.2f}; {self.seen:.2f})"


def compare_seeds(
    first: Sequence[Path], second: Sequence[Path], kind: str | None = None
) -> Difference:
    """Results of A and of B, of the same seeds in the same order.

    Args:
        first: A's, NAME.json as `mmtrain eval vqa` writes it.
        second: B's, on the same questions.
        kind: a question_type. None: all questions.
    """
    a_SN, image_N = scores(first, kind)
    b_SN, _ = scores(second, kind)
    each_S = 100 * (b_SN.mean(1) - a_SN.mean(1))
    num = len(each_S)
    error = float(each_S.std(ddof=1)) / num**0.5
    pooled = compare_paired(a_SN.ravel(), b_SN.ravel(), np.tile(image_N, num))
    assert pooled.interval is not None
    low, high = pooled.interval
    return Difference(
        mean=float(each_S.mean()),
        half=float(stats.t.ppf((1 + _LEVEL) / 2, num - 1)) * error,
        pictures=(100 * low, 100 * high),
        seen=smallest_effect(num) * error,
    )


def scores(results: Sequence[Path], kind: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Scores by result and question [S, N], and the number of each question's picture [N]."""
    held = [read_outcomes(path)["accuracy"] for path in results]
    names = sorted(
        name for name, one in held[0].items() if kind is None or one.kinds["question_type"] == kind
    )
    score_SN = np.array([[one[name].score for name in names] for one in held])
    images = {image: n for n, image in enumerate(sorted({o.image for o in held[0].values()}))}
    return score_SN, np.array([images[held[0][name].image] for name in names])


def smallest_effect(num: int) -> float:
    """The true mean, in standard errors, that a two-sided paired t-test of `num` pairs at 5 % finds
    with chance POWER.

    A mean of d errors is found where |Z + d| exceeds t times the estimated error, whose square is
    chi-squared: summed over its quantiles, as scipy's noncentral t gives nan for two pairs.
    """
    bound, share = stats.t.ppf((1 + _LEVEL) / 2, num - 1), (np.arange(4000) + 0.5) / 4000
    bounds = bound * np.sqrt(stats.chi2.ppf(share, num - 1) / (num - 1))

    def lacks(shift: float) -> float:
        found = stats.norm.sf(bounds - shift) + stats.norm.cdf(-bounds - shift)
        return float(found.mean()) - POWER

    return float(optimize.brentq(lacks, 0.5, 100.0))
