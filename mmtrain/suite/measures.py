"""From a result to the metrics that a table has of it, each with its interval."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmtrain.eval.intervals import (
    LEVEL,
    RESAMPLES,
    bootstrap_interval,
    count_intervals,
    mean_interval,
)
from mmtrain.eval.outcomes import Outcome
from mmtrain.eval.result import EvalResult


class Measure(NamedTuple):
    """A metric of a result."""

    value: float
    """From 0 to 1."""
    low: float | None = None
    """Of its 95 % interval. None: nothing tells one."""
    high: float | None = None
    """Its other end."""


def measures(result: EvalResult, metrics: Sequence[str]) -> dict[str, Measure]:
    """Those metrics of a result that it has.

    Args:
        result: of an evaluation.
        metrics: names, of `METRICS`.
    """
    figures = dict(result.figures)
    if "i2t_recall@1" in figures:
        figures["mean_recall@1"] = (figures["i2t_recall@1"] + figures["t2i_recall@1"]) / 2
    by_metric: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in result.outcomes:
        by_metric[outcome.metric].append(outcome)
    ends = _intervals(figures, by_metric)
    return {
        name: Measure(float(figures[name]), *ends.get(name, (None, None)))
        for name in metrics
        if isinstance(figures.get(name), int | float)
    }


def _intervals(
    figures: Mapping[str, Any], by_metric: Mapping[str, Sequence[Outcome]]
) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {
        name: (each.low, each.high) for name, each in count_intervals(figures).items()
    }
    for metric, outcomes in by_metric.items():
        if (interval := mean_interval(outcomes)) is not None:
            found[metric] = (interval.low, interval.high)
    if "mean_class_top1" in figures:
        ends = _of_classes(by_metric.get("top1", ()), figures["mean_class_top1"])
        found |= {"mean_class_top1": ends} if ends else {}
    if "mean_recall@1" in figures:
        ends = _of_both_ways(by_metric)
        found |= {"mean_recall@1": ends} if ends else {}
    return found


def _of_classes(outcomes: Sequence[Outcome], told: float) -> tuple[float, float] | None:
    """Of the mean over classes: samples drawn within each class, as its share stays what it is."""
    held: dict[str, list[float]] = defaultdict(list)
    for one in outcomes:
        held[one.kinds.get("class", "")].append(one.score)
    num_M = np.array([len(scores) for scores in held.values()])
    share_M = np.array([np.mean(scores) for scores in held.values()])
    # Two classes of one name cannot be told apart here, nor can one image tell how far it varies.
    if not num_M.size or abs(share_M.mean() - told) > 1e-9 or num_M.max() < 2:
        return None
    generator = np.random.default_rng(0)
    mean_R = np.zeros(RESAMPLES)
    for num, share in zip(num_M.tolist(), share_M.tolist(), strict=True):
        mean_R += generator.binomial(num, share, size=RESAMPLES) / num
    low, high = np.quantile(mean_R / num_M.size, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _of_both_ways(by_metric: Mapping[str, Sequence[Outcome]]) -> tuple[float, float] | None:
    """Of the mean of both recalls, whole images drawn with all their texts."""
    images, texts = by_metric.get("i2t_recall@1", ()), by_metric.get("t2i_recall@1", ())
    number = {one.image: place for place, one in enumerate(images)}
    if len(number) < len(images) or not texts or not {one.image for one in texts} <= set(number):
        return None
    part_N = np.array([one.score / 2 for one in images])
    for one in texts:
        part_N[number[one.image]] += one.score / 2 * len(images) / len(texts)
    return bootstrap_interval(part_N, np.arange(len(images)))


def mean_of(some: Sequence[Measure]) -> Measure:
    """The mean of metrics of independent sets, each counting the same.

    The interval's ends are as far from the mean as the root of the summed squares of theirs, over
    their number (Zou and Donner 2008, doi:10.1002/sim.3095). None where one has no interval.
    """
    value = sum(one.value for one in some) / len(some)
    below, above = 0.0, 0.0
    for one in some:
        if one.low is None or one.high is None:
            return Measure(value)
        below += (one.value - one.low) ** 2
        above += (one.high - one.value) ** 2
    return Measure(value, value - below**0.5 / len(some), value + above**0.5 / len(some))
