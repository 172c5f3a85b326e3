"""POPE's figures: how often a model says that something is there which is not.

Li et al. 2023, arXiv:2305.10355, section 5; "yes" is what counts as positive.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mmtrain.data.questions.question import Said


def says(answer: str) -> str:
    """What the published evaluation takes an answer for: `no` where its first sentence (up to the
    first full stop, commas left out) has `no`, `No` or `not` as a word between spaces; else, and of
    an empty answer too, `yes`."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"no", "No", "not"} & {*words} else "yes"


def is_right(said: Said) -> bool:
    """Whether it says what the label says."""
    return says(said.prediction) == said.question.answers[0]


def pope_figures(answered: Sequence[Said]) -> dict[str, Any]:
    """Precision, recall, F1 and the share of `yes`, as fractions; all of them and the accuracy
    also by category. A figure over nothing is 0, where the published program stops."""
    groups: dict[str, list[Said]] = defaultdict(list)
    for one in answered:
        groups[one.question.question_type].append(one)
    groups.pop("", None)
    own = {f"pope_{name}": value for name, value in _counted(answered).items()}
    own.pop("pope_accuracy")
    by_category = {category: _counted(some) for category, some in sorted(groups.items())}
    return own | ({"per_category": by_category} if by_category else {})


def _counted(answered: Sequence[Said]) -> dict[str, float]:
    said = [says(one.prediction) == "yes" for one in answered]
    true = [one.question.answers[0] == "yes" for one in answered]
    hits = sum(map(min, said, true))
    precision, recall = _share(hits, sum(said)), _share(hits, sum(true))
    return {
        "accuracy": _share(sum(map(is_right, answered)), len(answered)),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": _share(sum(said), len(said)),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
