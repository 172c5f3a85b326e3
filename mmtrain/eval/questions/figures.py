"""The figures of answers, whoever gave them, by the official evaluation of their set."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from mmtrain.data.questions.predictions import one_form
from mmtrain.data.questions.question import Question, Said
from mmtrain.errors import UsageError
from mmtrain.eval.outcomes import Outcome, told_apart
from mmtrain.eval.questions import letters, pope
from mmtrain.eval.questions.accuracy import Mode, textvqa_accuracy, vqa_accuracy
from mmtrain.eval.questions.gqa import (
    Choices,
    balanced_only,
    gqa_figures,
    is_right,
    refuse_missing_choices,
)

LETTERED = ("scienceqa", "choice")
"""Forms of which an answer is an option's letter."""


def accuracy_of(said: Said, mode: Mode) -> float:
    """Of one answer: GQA's is right or wrong as it is written; a set with one answer to each
    question is judged by exact match after normalising."""
    form, answers = said.question.form, said.question.answers
    if form == "gqa":
        return float(is_right(said))
    if form == "pope":
        return float(pope.is_right(said))
    if form in LETTERED:
        return float(letters.is_right(said))
    if form == "textvqa":
        return textvqa_accuracy(said.prediction, answers, mode)
    return vqa_accuracy(said.prediction, answers, mode if len(answers) > 1 else "exact")


def counted(answered: Sequence[Said]) -> list[Said]:
    """The answers that a set's figures are over: GQA's of balanced questions, else all."""
    is_gqa = one_form(one.question for one in answered) == "gqa"
    return balanced_only(answered) if is_gqa else list(answered)


def mean_accuracy(answered: Sequence[Said], mode: Mode) -> float:
    """Over the questions that count."""
    scores = [accuracy_of(one, mode) for one in counted(answered)]
    return fmean(scores)


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
    mode_used = check_judged([one.question for one in answered], mode, choices=choices)
    used = counted(answered)
    scores = [accuracy_of(one, mode) for one in used]
    figures: dict[str, Any] = {
        "accuracy": fmean(scores),
        "num_questions": len(scores),
        "mode": mode_used,
    }
    for key, name in (("question_type", "per_question_type"), ("answer_type", "per_answer_type")):
        groups: dict[str, list[float]] = defaultdict(list)
        for one, score in zip(used, scores, strict=True):
            groups[getattr(one.question, key)].append(score)
        groups.pop("", None)
        if groups:
            figures[name] = {kind: fmean(some) for kind, some in sorted(groups.items())}
    if mode_used == "pope":
        figures |= pope.pope_figures(answered)
    if mode_used == "letter":
        figures |= letters.letter_figures(answered)
    if mode_used == "gqa":
        own, left_out = gqa_figures(answered, choices)
        figures |= own | ({"left_out": left_out} if left_out else {})
    return figures


def image_counts(images: Sequence[str], answered: Sequence[Said]) -> dict[str, int]:
    """How many images there are, and how many questions without one, where there are any.

    Args:
        images: what tells the image of each answer.
        answered: every question.
    """
    seen = [one.question.has_image for one in answered]
    counts = {"num_images": len({image for image, has in zip(images, seen, strict=True) if has})}
    return counts | ({} if all(seen) else {"num_without_image": seen.count(False)})


def answer_outcomes(
    answered: Sequence[Said], mode: Mode, *, images: Sequence[str]
) -> tuple[Outcome, ...]:
    """What became of each question that counts.

    Args:
        answered: every question of the set.
        mode: of vqa_accuracy.
        images: the image of each.
    """
    kept = {id(one) for one in counted(answered)}
    rows = [pair for pair in zip(answered, images, strict=True) if id(pair[0]) in kept]
    numbers = [str(one.question.question_id) for one, _ in rows]
    fuller = [f"{image} {number}" for (_, image), number in zip(rows, numbers, strict=True)]
    return tuple(
        Outcome(
            metric="accuracy",
            id=name,
            image=image,
            score=accuracy_of(one, mode),
            kinds={
                name: kind
                for name in ("answer_type", "question_type")
                if (kind := getattr(one.question, name))
            },
            asked=one.question.question,
            wanted=most_given(one.question.answers),
            said=one.prediction,
            is_cut=one.is_cut,
        )
        for name, (one, image) in zip(told_apart(numbers, fuller), rows, strict=True)
    )


def most_given(answers: Sequence[str]) -> str:
    """What most annotators said; of equally many the first by letter."""
    return max(sorted(set(answers)), key=answers.count)


def check_judged(questions: Sequence[Question], mode: Mode, *, choices: Choices | None) -> str:
    """Whether answers to these questions can be judged so -> how they are compared.

    Raises:
        UsageError: the questions have no answers or are of several sets, or a setting has no
            effect.
    """
    bare = [question.question_id for question in questions if not question.answers]
    if bare:
        raise UsageError(
            f"{len(bare)} of {len(questions)} questions have no answers, the first is question_id "
            f"{bare[0]}; name the set's annotations (--annotations, of VQAv2 and OK-VQA), or a "
            "split whose answers are published"
        )
    form = one_form(questions)
    is_gqa = form == "gqa"
    if choices is not None and not is_gqa:
        raise UsageError("choices: only GQA has such a file, and these questions are not its")
    if is_gqa:
        unsaid = [Said(question=question, prediction="") for question in questions]
        used = balanced_only(unsaid)
        if choices is not None:
            refuse_missing_choices(used, choices)
    if form == "pope":
        if mode != "official":
            raise UsageError(f"mode = {mode} is VQAv2's; POPE has one rule, leave it out")
        return form
    if form in LETTERED:
        if mode != "official":
            raise UsageError(f"mode = {mode} is VQAv2's; letters are right or wrong, leave it out")
        return "letter"
    if form == "textvqa":
        if mode == "evalai":
            raise UsageError("mode = evalai is VQAv2's; TextVQA's own is official, leave it out")
        return "textvqa" if mode == "official" else mode
    if not is_gqa and any(len(question.answers) > 1 for question in questions):
        return mode
    if mode == "evalai":
        raise UsageError(
            "mode = evalai is for several annotators, and each question has one answer; leave it "
            "out"
        )
    return "gqa" if is_gqa else "exact"
