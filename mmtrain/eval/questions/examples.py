"""Right and wrong answers to look at: the image, and where the model looked when it answered."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmtrain.data.images.transforms import eval_transform
from mmtrain.data.questions.batches import TextForm
from mmtrain.data.samples import read_members
from mmtrain.data.sources.source import SampleSource
from mmtrain.eval.look.answers import Looked, look
from mmtrain.eval.look.pictures import draw_heat, seen_part, to_webp
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.answering import Answered
from mmtrain.eval.questions.figures import most_given
from mmtrain.eval.result import Example
from mmtrain.eval.samples import decode_sample
from mmtrain.models.vqa import Asked

NUM_EXAMPLES = 8
"""Of the right answers, and of the wrong ones."""


def answer_examples(
    answerer: Answerer,
    source: SampleSource,
    answered: Sequence[Answered],
    scores: Sequence[float],
) -> tuple[list[Example], list[Example]]:
    """The surest right answers, each of another kind of question while there are any, and the
    surest wrong ones; of an image one.

    Args:
        answerer: the model, whole on this process.
        source: the images.
        answered: to every question.
        scores: how right each answer is; 0 is wrong.
    """
    pairs = sorted(zip(answered, scores, strict=True), key=lambda pair: -pair[0].probability)
    right = _spread([one for one, score in pairs if score > 0])
    used = {one.sample for one in right}
    wrong = _spread([one for one, score in pairs if score == 0 and one.sample not in used])
    return (
        [_example(answerer, source, one, rank=1) for one in right],
        [_example(answerer, source, one, rank=2) for one in wrong],
    )


def _spread(surest: list[Answered]) -> list[Answered]:
    """At most NUM_EXAMPLES of them: no image twice; first one of each right answer."""
    chosen: list[Answered] = []
    for again in (False, True):
        for one in surest:
            images = {other.sample for other in chosen}
            answers = {most_given(other.question.answers) for other in chosen}
            if len(chosen) == NUM_EXAMPLES:
                return chosen
            if one.sample not in images and (
                again or most_given(one.question.answers) not in answers
            ):
                chosen.append(one)
    return chosen


def _example(answerer: Answerer, source: SampleSource, one: Answered, *, rank: int) -> Example:
    image = decode_sample(read_members(source, one.sample)).convert("RGB")
    transform = eval_transform(answerer.preprocess)
    picture = seen_part(image, transform.seen_region(*image.size))
    looked = _look(answerer, transform(image)[None], one.question.question)
    sure = f"{one.probability:.0%} sure"
    for place, entries in ({} if looked is None else looked.entries).items():
        sure += f"; {place} entries " + ", ".join(str(entry) for entry, _ in entries[:3])
    return Example(
        key=one.image_key,
        text=f"{one.question.question} {most_given(one.question.answers)}",
        predicted=one.prediction,
        rank=rank,
        num_candidates=2,
        picture=to_webp(picture),
        attention=None if looked is None else draw_heat(picture, looked.grid.cpu(), low=0.0),
        remark=sure,
    )


def _look(answerer: Answerer, pixels_1CHW: Tensor, question: str) -> Looked | None:
    """Where the model looks; None where its tokens have no place in the image or stand within a
    dialogue, or where that is not finite."""
    config = answerer.model.config
    if config.connector.kind == "queries" or config.reads_dialogues:
        return None
    tokens_1T, length_1, _ = TextForm(tokenizer=answerer.tokenizer).encode([(question, "")])
    tokens_1T, length_1 = tokens_1T.to(answerer.device), length_1.to(answerer.device)
    asked = Asked(tokens_QT=tokens_1T, question_length_Q=length_1, length_Q=length_1)
    pixels_1CHW = pixels_1CHW.to(answerer.device)
    with torch.no_grad():
        looked = look(answerer.model, pixels_1CHW, asked, head=answerer.chosen_head)
    return looked if bool(looked.grid.isfinite().all()) else None
