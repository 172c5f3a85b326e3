"""Accuracy, calibration and confusions of given scores, against their definitions."""

import math

import pytest
import torch

from mmtrain.eval.classify.classes import class_list
from mmtrain.eval.classify.classification import SCALES, ClassTable
from tests.eval.tiny import make_encoder

NAMES = [f"n{number}" for number in range(7)]


def make_scores(num: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of a mediocre model, and the right classes."""
    generator = torch.Generator().manual_seed(1)
    class_N = torch.randint(0, 7, (num,), generator=generator)
    scores_NM = 0.1 * torch.randn(num, 7, generator=generator)
    scores_NM[torch.arange(num), class_N] += 0.08
    return scores_NM, class_N


def judged(scores_NM: torch.Tensor, class_N: torch.Tensor, *, step: int = 64):
    table = ClassTable(len(class_N), torch.device("cpu"))
    for first in range(0, len(class_N), step):
        rows = slice(first, min(first + step, len(class_N)))
        table.fill(rows, scores_NM[rows], class_N[rows])
    return table.gather(make_encoder())


def test_the_scale_is_the_one_with_the_lowest_loss() -> None:
    scores_NM, class_N = make_scores()
    verdicts = judged(scores_NM, class_N)
    losses = {
        scale: float(torch.nn.functional.cross_entropy(scale * scores_NM.double(), class_N))
        for scale in SCALES
    }
    best = min(losses, key=losses.__getitem__)
    assert verdicts.scale == best and SCALES[0] < best < SCALES[-1]
    assert verdicts.loss == pytest.approx(losses[best], rel=1e-5)
    wanted_N = (best * scores_NM.double()).softmax(1).amax(1)
    assert torch.allclose(verdicts.confidence_N, wanted_N, atol=1e-5)


def test_calibration_error_and_confusions_are_as_defined() -> None:
    scores_NM, class_N = make_scores()
    verdicts = judged(scores_NM, class_N)
    figures = verdicts.figures(class_list(NAMES), per_class=False)
    right = (scores_NM.argmax(1) == class_N).tolist()
    confidence = verdicts.confidence_N.tolist()
    error = 0.0
    for low in range(15):
        inside = [i for i in range(400) if low <= 15 * confidence[i] < low + 1]
        error += abs(sum(right[i] - confidence[i] for i in inside)) / 400
    assert figures["calibration"]["expected_error"] == pytest.approx(error, abs=1e-6)
    # The bins tell the same error, and together all samples and all that is right.
    bins = figures["reliability"]
    assert 5 < len(bins) <= 15 and sum(row["count"] for row in bins) == 400
    assert sum(row["count"] * row["top1"] for row in bins) == pytest.approx(sum(right))
    gaps = [row["count"] * abs(row["top1"] - row["confidence"]) for row in bins]
    assert math.fsum(gaps) / 400 == pytest.approx(error, abs=1e-6)
    assert [row["confidence"] for row in bins] == sorted(row["confidence"] for row in bins)

    taken: dict[tuple[int, int], list[float]] = {}
    for i, (true, first) in enumerate(
        zip(class_N.tolist(), scores_NM.argmax(1).tolist(), strict=True)
    ):
        if true != first:
            taken.setdefault((true, first), []).append(confidence[i])
    often = sorted(taken, key=lambda pair: (-len(taken[pair]), pair))[:20]
    for row, (true, first) in zip(figures["confusions"], often, strict=True):
        assert (row["name"], row["predicted"]) == (NAMES[true], NAMES[first])
        assert row["count"] == len(taken[true, first])
        assert row["share"] == row["count"] / int((class_N == true).sum())
        assert row["confidence"] == pytest.approx(math.fsum(taken[true, first]) / row["count"])


def test_a_perfect_model_is_sure_and_confuses_nothing() -> None:
    class_N = torch.arange(70) % 7
    verdicts = judged(torch.eye(7)[class_N], class_N)
    figures = verdicts.figures(class_list(NAMES), per_class=True)
    assert figures["top1"] == figures["mean_class_top1"] == 1
    assert figures["confusions"] == []
    assert figures["calibration"]["expected_error"] < 1e-6
    assert torch.equal(verdicts.lead_N, torch.ones(70))


def test_a_single_class_is_always_right() -> None:
    figures = judged(torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64)).figures(
        class_list(["x"]), per_class=False
    )
    assert (figures["top1"], figures["calibration"]["loss"]) == (1, 0)
