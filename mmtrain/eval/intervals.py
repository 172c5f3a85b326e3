"""How far chance alone would move a mean over samples."""

from collections.abc import Iterable, Mapping
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmtrain.eval.outcomes import Outcome

RESAMPLES = 10_000
LEVEL = 0.95
INTERVALS = "intervals"
"""The figure that holds intervals by figure, of those which neither counts nor outcomes tell."""
_AT_ONCE = 20_000_000
"""Draws that are held at a time."""


class Interval(NamedTuple):
    """95 % of such intervals hold the mean over all samples of the kind."""

    low: float
    high: float
    method: Literal["wilson", "bootstrap"]
    """How it was found."""


def mean_interval(outcomes: Iterable[Outcome]) -> Interval | None:
    """Of the mean of some outcomes: Wilson's where each is of an image of its own and right or
    wrong; where images have several, the bootstrap over images. None: they are all about one image,
    which tells none.
    """
    some = list(outcomes)
    numbers = {image: n for n, image in enumerate(dict.fromkeys(one.image for one in some))}
    score_N = np.array([one.score for one in some], dtype=np.float64)
    if len(numbers) < 2:
        return None
    is_alike = np.unique(score_N).size == 1  # resamples would all be the same
    if np.isin(score_N, (0, 1)).all() and (is_alike or len(numbers) == score_N.size):
        # All right, or all wrong: the images are what is independent.
        return wilson_interval(round(len(numbers) * float(score_N.mean())), len(numbers))
    found = bootstrap_interval(score_N, np.array([numbers[one.image] for one in some]))
    return None if found is None else Interval(*found, "bootstrap")


def wilson_interval(num_right: int, num: int) -> Interval:
    """95 % score interval of a share (Wilson 1927): right or wrong, independent of each other."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, shrink = num_right / num, 1 + z**2 / num
    middle = (share + z**2 / (2 * num)) / shrink
    reach = z * sqrt(share * (1 - share) / num + z**2 / (4 * num**2)) / shrink
    low = 0.0 if num_right == 0 else middle - reach
    return Interval(low, 1.0 if num_right == num else middle + reach, "wilson")


def count_intervals(result: Mapping[str, Any]) -> dict[str, Interval]:
    """By figure: of shares that are over images, each right or wrong, a number of images suffices;
    others are among the figures."""
    ways = ["i2t"] + ["t2i"] * (result.get("num_texts") == result.get("num_images"))
    over: dict[str, Any] = {f"top{k}": result.get("num_samples") for k in (1, 5)}
    over |= {f"{way}_recall@{k}": result.get("num_images") for way in ways for k in (1, 5, 10)}
    groups = result.get("group_count")
    if isinstance(groups, Mapping):
        worst = {k: result.get(f"worst_group_at_{k}") for k in (1, 5)}
        over |= {f"worst_group_top{k}": groups.get(name) for k, name in worst.items()}
    found: dict[str, Interval] = {}
    for key, num in over.items():
        share = result.get(key)
        if isinstance(share, int | float) and isinstance(num, int) and num and 0 <= share <= 1:
            found[key] = wilson_interval(round(share * num), num)
    told = result.get(INTERVALS)
    for key, ends in told.items() if isinstance(told, Mapping) else ():
        found[key] = Interval(ends[0], ends[1], "bootstrap")
    return found


def bootstrap_interval(
    value_N: NDArray[np.float64], image_N: NDArray[np.int64], *, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile interval of the mean, whole images drawn with all their samples (the cluster
    bootstrap; Efron and Tibshirani 1993, chapters 8 and 13). None for a single image.

    Images with the same sum over as many samples are one class, of which a resample takes a
    multinomial number: the same distribution, drawn in time that does not grow with the images.
    """
    _, place_N = np.unique(image_N, return_inverse=True)
    num_C = np.bincount(place_N)
    if num_C.size < 2:
        return None
    sum_C = np.bincount(place_N, weights=value_N).round(9)
    classes, count_K = np.unique(np.stack([sum_C, num_C]), axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    at_once, left = max(1, _AT_ONCE // count_K.size), RESAMPLES
    while left > 0:
        drawn_RK = generator.multinomial(num_C.size, count_K / num_C.size, size=min(at_once, left))
        means.append((drawn_RK @ classes[0]) / (drawn_RK @ classes[1]))
        left -= at_once
    low, high = np.quantile(np.concatenate(means), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
