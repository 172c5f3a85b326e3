"""The figures of answers, whoever gave them, by the official evaluation of their set."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mmtrain.data.vqa_predictions import one_form
from mmtrain.data.vqa_question import Said
from mmtrain.errors import UsageError
from mmtrain.eval.vqa import Mode, vqa_accuracy
from mmtrain.eval.vqa_gqa import Choices, balanced_only, gqa_figures, is_right


def accuracy_of(said: Said, mode: Mode) -> float:
    """Of one answer: GQA's is right or wrong as it is written; a set with one answer to each
    question is judged by exact match after normalising."""
    if said.question.form == "gqa":
        return float(is_right(said))
    answers = said.question.answers
    return vqa_accuracy(said.prediction, answers, mode if len(answers) > 1 else "exact")


def counted(answered: Sequence[Said]) -> list[Said]:
    """The answers that a set's figures are over: GQA's of balanced questions, else all."""
    is_gqa = one_form(one.question for one in answered) == "gqa"
    return balanced_only(answered) if is_gqa else list(answered)


def mean_accuracy(answered: Sequence[Said], mode: Mode) -> float:
    """Over the questions that count."""
    scores = [accuracy_of(one, mode) for one in counted(answered)]
    return sum(scores) / len(scores)


def vqa_figures(
    answered: Sequence[Said], mode: Mode, *, choices: Choices | None = None
) -> dict[str, Any]:
    """Accuracy over all questions and by their types, and GQA's own figures where they are GQA's;
    `left_out` tells of figures that the files do not suffice for.

    Args:
        answered: every question of the set, with its right answers.
        mode: of vqa_accuracy, where there are several annotators.
        choices: GQA's.

    Raises:
        UsageError: the questions have no answers or are of several sets, or a setting has no
            effect.
    """
    refuse_without_answers(answered)
    is_gqa = one_form(one.question for one in answered) == "gqa"
    mode_used = _mode_used(answered, mode, is_gqa=is_gqa)
    if choices is not None and not is_gqa:
        raise UsageError("choices: only GQA has such a file, and these questions are not its")
    used = counted(answered)
    scores = [accuracy_of(one, mode) for one in used]
    figures: dict[str, Any] = {
        "accuracy": sum(scores) / len(scores),
        "num_questions": len(scores),
        "mode": mode_used,
    }
    for key, name in (("question_type", "per_question_type"), ("answer_type", "per_answer_type")):
        groups: dict[str, list[float]] = defaultdict(list)
        for one, score in zip(used, scores, strict=True):
            groups[getattr(one.question, key)].append(score)
        groups.pop("", None)
        if groups:
            figures[name] = {kind: sum(some) / len(some) for kind, some in sorted(groups.items())}
    if is_gqa:
        own, left_out = gqa_figures(answered, choices)
        figures |= own | ({"left_out": left_out} if left_out else {})
    return figures


def refuse_without_answers(answered: Sequence[Said]) -> None:
    """Questions whose right answers are not known cannot be judged.

    Raises:
        UsageError: there are such.
    """
    bare = [one.question.question_id for one in answered if not one.question.answers]
    if bare:
        raise UsageError(
            f"{len(bare)} of {len(answered)} questions have no answers, the first is question_id "
            f"{bare[0]}; name the set's annotations (--annotations, VQAv2), or a split whose "
            "answers are published"
        )


def _mode_used(answered: Sequence[Said], mode: Mode, *, is_gqa: bool) -> str:
    """How answers are compared; what cannot matter is refused."""
    if is_gqa or all(len(one.question.answers) == 1 for one in answered):
        if mode == "evalai":
            raise UsageError(
                "mode = evalai is for several annotators, and each question has one answer; leave "
                "it out"
            )
        return "gqa" if is_gqa else "exact"
    return mode
