"""Right and wrong answers to look at: the image, and where the model looked when it answered."""

from collections.abc import Sequence

from PIL import Image

from mmtrain.data.members import read_members
from mmtrain.data.sources.source import SampleSource
from mmtrain.eval.look.answers import Looked
from mmtrain.eval.look.pictures import draw_heat, seen_part, to_webp
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.answering import Answered
from mmtrain.eval.questions.figures import most_given
from mmtrain.eval.questions.looking import look_at, region_seen
from mmtrain.eval.questions.seeing import pieces_of
from mmtrain.eval.result import Example
from mmtrain.eval.samples import decode_sample

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
    image = decode_sample(read_members(source, one.sample))
    region = region_seen(answerer, image)
    picture = seen_part(image, region)
    looked = _look(answerer, image, one.question.question)
    sure = f"{one.probability:.0%} sure"
    for place, entries in looked.entries.items():
        sure += f"; {place} entries " + ", ".join(str(entry) for entry, _ in entries[:3])
    return Example(
        key=one.image_key,
        text=f"{one.question.question} {most_given(one.question.answers)}",
        predicted=one.shown,
        rank=rank,
        num_candidates=2,
        picture=to_webp(picture),
        attention=None if looked.grid is None else draw_heat(picture, looked.grid.cpu(), low=0.0),
        remark=sure,
    )


def _look(answerer: Answerer, image: Image.Image, question: str) -> Looked:
    """Where the model looks; without a map where that is not finite."""
    looked = look_at(answerer, pieces_of(answerer, image), question)
    if looked.grid is None or bool(looked.grid.isfinite().all()):
        return looked
    return Looked(grid=None, entries={})
