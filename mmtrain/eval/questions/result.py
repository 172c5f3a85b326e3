"""A VQA model's figures on a set, with probes and examples beside them."""

from collections.abc import Sequence

from mmtrain.data.sources.source import SampleSource
from mmtrain.eval.outcomes import sample_names
from mmtrain.eval.questions.accuracy import Mode
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.answering import Answered, Probe, answer_all
from mmtrain.eval.questions.examples import answer_examples
from mmtrain.eval.questions.figures import (
    accuracy_of,
    answer_outcomes,
    image_counts,
    mean_accuracy,
    vqa_figures,
)
from mmtrain.eval.questions.gqa import Choices
from mmtrain.eval.result import EvalResult, provenance
from mmtrain.models.dialogues import DialogueGenerator

PROBES: tuple[Probe, ...] = ("question", "image")


def evaluate_vqa(
    answerer: Answerer,
    source: SampleSource,
    *,
    mode: Mode = "official",
    probes: Sequence[Probe] = (),
    choices: Choices | None = None,
    answered: Sequence[Answered] | None = None,
) -> EvalResult:
    """Ask every question of a set.

    Args:
        answerer: the model.
        source: images with questions and answers.
        mode: of vqa_accuracy, where there are several annotators.
        probes: also ask with black images, or with empty questions: how far one side alone leads.
        choices: GQA's, for validity and plausibility.
        answered: what `answer_all` gave, which is then not asked again.

    Raises:
        UsageError: on every rank, a sample cannot be used or has no answers.
    """
    if answered is None:
        answered = answer_all(answerer, source)
    figures = vqa_figures(answered, mode, choices=choices)
    figures |= image_counts([str(one.sample) for one in answered], answered)
    if not isinstance(answerer.model.generate, DialogueGenerator):  # which refuses such questions
        cut = sum(answerer.tokenizer.is_cut(one.question.question) for one in answered)
        figures |= {"num_cut": cut} if cut else {}
    if unended := sum(one.is_cut for one in answered):
        figures["num_answers_cut"] = unended
    for probe in probes:
        probed = answer_all(answerer, source, probe=probe)
        figures[f"{probe}_only_accuracy"] = mean_accuracy(probed, mode)
    if answerer.choose is not None:
        figures["chosen_by"] = answerer.choose
    figures |= {
        "head": answerer.chosen_head,
        "provenance": provenance(answerer, source),  # pyright: ignore[reportArgumentType]
    }
    best, worst = ([], [])
    if answerer.is_main:
        scores = [accuracy_of(one, mode) for one in answered]
        best, worst = answer_examples(answerer, source, answered, scores)
    names = sample_names(source, range(source.num_samples))
    images = [names[one.sample] for one in answered]
    outcomes = answer_outcomes(answered, mode, images=images)
    return EvalResult(figures=figures, best=best, worst=worst, outcomes=outcomes)
