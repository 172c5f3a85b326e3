"""GQA's own figures. Hudson and Manning 2019, arXiv:1902.09506, section 4.3 and its evaluation."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmtrain.eval.answering import Answered


def gqa_figures(
    answered: Sequence[Answered], choices: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, float]:
    """Accuracy of binary and open questions, consistency, distribution; validity and plausibility
    where `choices` are given.

    Only balanced questions count for the accuracies and the distribution, as in the official
    evaluation; entailed ones are looked up among all that were answered.

    Args:
        answered: predictions with GQA's questions.
        choices: GQA's choices file: question id -> {"valid": [...], "plausible": [...]}.
    """
    by_id = {str(one.question.question_id): one for one in answered}
    balanced = [one for one in answered if one.question.extra.get("isBalanced", True)]
    figures: dict[str, float] = {}
    for name, kinds in (
        ("binary", ("verify", "logical")),
        ("open", ("query", "choose", "compare")),
    ):
        right = [is_right(one) for one in balanced if one.question.question_type in kinds]
        if right:
            figures[f"gqa_{name}"] = sum(right) / len(right)
    consistency = _consistency(balanced, by_id)
    if consistency is not None:
        figures["gqa_consistency"] = consistency
    distribution = _distribution(balanced)
    if distribution is not None:
        figures["gqa_distribution"] = distribution
    if choices is not None:
        for name in ("valid", "plausible"):
            inside = [
                one.prediction in choices[str(one.question.question_id)][name] for one in balanced
            ]
            figures[f"gqa_{name}"] = sum(inside) / max(1, len(inside))
    return figures


def is_right(answered: Answered) -> bool:
    """GQA compares strings as they are."""
    return answered.prediction == answered.question.answers[0]


def _consistency(balanced: Sequence[Answered], by_id: Mapping[str, Answered]) -> float | None:
    """Over questions answered rightly: how many of those that follow from them are right too."""
    scores = []
    for one in balanced:
        entailed = [
            other
            for other in one.question.extra.get("entailed", ())
            if other != str(one.question.question_id) and other in by_id
        ]
        if entailed and is_right(one):
            right = [is_right(by_id[other]) for other in entailed]
            scores.append(sum(right) / len(right))
    return sum(scores) / len(scores) if scores else None


def _distribution(balanced: Sequence[Answered]) -> float | None:
    """Chi-square of predicted against true answers within each global group, weighted by the
    groups' sizes; lower is better."""
    true: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    said: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in balanced:
        group = (one.question.extra.get("groups") or {}).get("global")
        if group is not None:
            true[group][one.question.answers[0]] += 1
            said[group][one.prediction] += 1
    total = sum(sum(counts.values()) for counts in true.values())
    if not total:
        return None
    score = 0.0
    for group, counts in true.items():
        size = sum(counts.values())
        away = sum((said[group][answer] - n) ** 2 / n for answer, n in counts.items())
        score += size * (away / len(counts))
    return score / total
