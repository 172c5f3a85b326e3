"""A VQA model's figures on a set: accuracy by type of question and answer, with probes beside."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtrain.data.sources import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.answering import Answered, Answerer, Probe, answer_all
from mmtrain.eval.result import EvalResult, provenance
from mmtrain.eval.vqa import Mode, vqa_accuracy
from mmtrain.eval.vqa_examples import answer_examples
from mmtrain.eval.vqa_gqa import gqa_figures
from mmtrain.files import replace_file

PROBES: tuple[Probe, ...] = ("question", "image")


def accuracy_of(answered: Answered, mode: Mode) -> float:
    """Of one question; a set with one answer to each is judged by exact match."""
    answers = answered.question.answers
    return vqa_accuracy(answered.prediction, answers, mode if len(answers) > 1 else "exact")


def evaluate_vqa(
    answerer: Answerer,
    source: SampleSource,
    *,
    mode: Mode = "official",
    probes: Sequence[Probe] = (),
) -> EvalResult:
    """Ask every question of a set.

    Args:
        answerer: the model.
        source: images with questions and answers.
        mode: of vqa_accuracy, where there are several annotators.
        probes: also ask with black images, or with empty questions: how far one side alone leads.

    Raises:
        UsageError: on every rank, a sample cannot be used or has no answers.
    """
    answered = answer_all(answerer, source)
    bare = [one.question.question_id for one in answered if not one.question.answers]
    if bare:
        raise UsageError(
            f"evaluation data: {len(bare)} of {len(answered)} questions have no answers, the first "
            f"is question_id {bare[0]}; name the set's annotations"
        )
    figures = vqa_figures(answered, mode)
    for probe in probes:
        probed = answer_all(answerer, source, probe=probe)
        scores = [accuracy_of(one, mode) for one in probed]
        figures[f"{probe}_only_accuracy"] = sum(scores) / len(scores)
    figures |= {
        "head": answerer.chosen_head,
        "provenance": provenance(answerer, source),  # pyright: ignore[reportArgumentType]
    }
    best, worst = ([], [])
    if answerer.is_main:
        scores = [accuracy_of(one, mode) for one in answered]
        best, worst = answer_examples(answerer, source, answered, scores)
    return EvalResult(figures=figures, best=best, worst=worst)


def write_predictions(path: Path, answered: Sequence[Answered]) -> None:
    """Answers in the form that the set's official evaluation reads: GQA's `[{questionId,
    prediction}]`, VizWiz's `[{image, answer}]`, VQAv2's `[{question_id, answer}]`.

    Raises:
        UsageError: the file cannot be written.
    """
    extra = answered[0].question.extra
    names = ("question_id", "answer")
    if "isBalanced" in extra or "types" in extra:
        names = ("questionId", "prediction")
    elif "answerable" in extra:
        names = ("image", "answer")
    rows = [dict(zip(names, (a.question.question_id, a.prediction), strict=True)) for a in answered]
    try:
        replace_file(path, json.dumps(rows, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UsageError(f"predictions = {path} cannot be written: {error}") from error


def vqa_figures(answered: Sequence[Answered], mode: Mode) -> dict[str, Any]:
    """Accuracy over all questions and by their types, and GQA's own figures where there are any."""
    scores = [accuracy_of(one, mode) for one in answered]
    figures: dict[str, Any] = {
        "accuracy": sum(scores) / len(scores),
        "num_questions": len(scores),
        "num_images": len({one.sample for one in answered}),
        "mode": mode if any(len(one.question.answers) > 1 for one in answered) else "exact",
    }
    for key, name in (("question_type", "per_question_type"), ("answer_type", "per_answer_type")):
        groups: dict[str, list[float]] = defaultdict(list)
        for one, score in zip(answered, scores, strict=True):
            groups[getattr(one.question, key)].append(score)
        groups.pop("", None)
        if groups:
            figures[name] = {kind: sum(some) / len(some) for kind, some in sorted(groups.items())}
    if any("entailed" in one.question.extra for one in answered):
        figures |= gqa_figures(answered)
    return figures
