"""GQA's figures, as its published evaluation computes them.

Hudson and Manning 2019, arXiv:1902.09506, section 4.3. Grounding, which scores the attention that a
model paid, is not among them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import fsum
from pathlib import Path
from statistics import fmean
from typing import Any

from mmtrain.data.questions.json_file import read_json_file
from mmtrain.data.questions.question import Question, Said
from mmtrain.errors import UsageError

Choices = Mapping[str, Mapping[str, Sequence[str]]]
"""Question id -> its `valid` and its `plausible` answers."""
_COMMON = ("color", "material", "shape")
"""The answers to what two things have in common, in place of those that the choices file lists."""
_SCALE = 100
"""The published distance is the mean chi-square over this."""


def read_choices(path: Path) -> Choices:
    """GQA's choices file.

    Raises:
        UsageError: it cannot be read or is another file.
    """
    content = read_json_file(path, "choices")
    rows = list(content.values()) if isinstance(content, dict) else [None]
    for row in rows:
        lists = (row.get("valid"), row.get("plausible")) if isinstance(row, dict) else (None,)
        if not all(isinstance(some, list) for some in lists):
            raise UsageError(
                f'choices = {path} is no table of {{"valid": [...], "plausible": [...]}} by '
                "question id; name GQA's choices file"
            )
    return content


def refuse_missing_choices(balanced: Sequence[Said], choices: Choices) -> None:
    """Choices of another split.

    Raises:
        UsageError: a balanced question has none.
    """
    ids = [str(one.question.question_id) for one in balanced]
    if missing := [question_id for question_id in ids if question_id not in choices]:
        raise UsageError(
            f"choices: {len(missing)} of {len(ids)} balanced questions have none, the first is "
            f"{missing[0]}; name the file of this split"
        )


def is_right(said: Said) -> bool:
    """GQA compares strings as they are."""
    return said.prediction == said.question.answers[0]


def balanced_only(answered: Sequence[Said]) -> list[Said]:
    """The answers to balanced questions, over which GQA's figures are; all where no question says
    whether it is.

    Raises:
        UsageError: some say it and some do not, or none is balanced.
    """
    told = [one.question.extra.get("isBalanced") for one in answered]
    silent = told.count(None)
    if 0 < silent < len(told):
        name = answered[told.index(None)].question.question_id
        raise UsageError(
            f"questions: {silent} of {len(told)} do not say isBalanced, the first is {name}; fetch "
            "the file again"
        )
    balanced = [one for one, says in zip(answered, told, strict=True) if says is not False]
    if not balanced:
        raise UsageError("questions: none isBalanced, and GQA's figures are over balanced ones")
    return balanced


def gqa_figures(
    answered: Sequence[Said], choices: Choices | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The published figures as fractions (the distribution as it is, lower is better), and by name
    why one is left out.

    Balanced questions count; what follows from them is looked up among all. As published, a figure
    over nothing is 0.

    Args:
        answered: every question of the file, or its balanced ones.
        choices: of all balanced questions; None: neither validity nor plausibility.

    Raises:
        UsageError: as balanced_only.
    """
    balanced = balanced_only(answered)
    figures: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    if all(one.question.question_type for one in balanced):
        opened = [one.question.question_type == "query" for one in balanced]
        for name, wanted in (("gqa_binary", False), ("gqa_open", True)):
            own = [one for one, is_open in zip(balanced, opened, strict=True) if is_open is wanted]
            figures[name] = _mean([is_right(one) for one in own])
    else:
        left_out["gqa_binary"] = left_out["gqa_open"] = "questions without types.structural"
    for name, found in (
        ("gqa_consistency", _consistency(balanced, answered)),
        ("gqa_distribution", _distribution(balanced)),
    ):
        if isinstance(found, str):
            left_out[name] = found
        else:
            figures[name] = found
    for name, listed in (("gqa_validity", "valid"), ("gqa_plausibility", "plausible")):
        if choices is None:
            left_out[name] = "no choices file (--choices)"
        else:
            figures[name] = _mean([_is_among(one, choices, listed) for one in balanced])
    return figures | _by_length(balanced), left_out


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _consistency(balanced: Sequence[Said], answered: Sequence[Said]) -> float | str:
    """Over questions answered rightly: how many of those that follow from them are right too."""
    by_id = {str(one.question.question_id): one for one in answered}
    if not any("entailed" in one.question.extra for one in balanced):
        return "questions without entailed"
    scores = []
    for one in balanced:
        own = str(one.question.question_id)
        entailed = [other for other in one.question.extra.get("entailed", ()) if other != own]
        if not entailed or not is_right(one):
            continue
        if missing := [other for other in entailed if other not in by_id]:
            return (
                f"question {missing[0]} follows from {own} and is not answered; it needs GQA's "
                "file of all questions"
            )
        scores.append(_mean([is_right(by_id[other]) for other in entailed]))
    return _mean(scores)


def _is_among(said: Said, choices: Choices, listed: str) -> bool:
    question = said.question
    is_common = "Common" in (question.extra.get("types") or {}).get("detailed", "")
    return said.prediction in (_COMMON if is_common else choices[str(question.question_id)][listed])


def _distribution(balanced: Sequence[Said]) -> float | str:
    """Chi-square of predicted against true answers within each global group, weighted by the
    groups' sizes."""
    true: dict[str, Counter[str]] = defaultdict(Counter)
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for one in balanced:
        group = (one.question.extra.get("groups") or {}).get("global")
        if group is not None:
            true[group][one.question.answers[0]] += 1
            said[group][one.prediction] += 1
    if not true:
        return "questions without groups.global"
    weighted = fsum(
        counts.total() * fsum((said[group][answer] - n) ** 2 / n for answer, n in counts.items())
        for group, counts in true.items()
    )
    return weighted / sum(counts.total() for counts in true.values()) / _SCALE


def _by_length(balanced: Sequence[Said]) -> dict[str, dict[str, float]]:
    """Accuracy by the number of words, and of reasoning steps where the questions tell it."""
    figures = {"per_num_words": _by(balanced, lambda one: len(one.question.split()))}
    if all("num_steps" in one.question.extra for one in balanced):
        figures["per_num_steps"] = _by(balanced, lambda one: one.extra["num_steps"])
    return figures


def _by(balanced: Sequence[Said], of: Callable[[Question], Any]) -> dict[str, float]:
    groups: dict[Any, list[bool]] = defaultdict(list)
    for one in balanced:
        groups[of(one.question)].append(is_right(one))
    return {str(key): _mean(groups[key]) for key in sorted(groups)}
