"""What the page asks of a model that answers: its answer as it is made, how sure it is of it, and
where it looked."""

import math
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from mmtrain.data.dialogues.dialogue import Turn
from mmtrain.data.images.decode import open_image
from mmtrain.data.images.tiles import Pieces
from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError
from mmtrain.eval.look.answers import NO_PLACE
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.asking import Reply, likeliest_answers, stream_answer
from mmtrain.eval.questions.choosing import choose_among
from mmtrain.eval.questions.looking import look_at, region_seen
from mmtrain.eval.questions.reading import refuse_cut, turns_with_room
from mmtrain.eval.questions.seeing import Seen, pieces_of, see_pieces
from mmtrain.models.vqa import Head
from mmtrain.serve.guard import Refusal
from mmtrain.serve.kept import KeptImages, refusing

Steps = Generator[dict[str, Any], None, None]
"""What an answer is made in."""

NUM_CHOICES = 5
"""Answers of a classifier that are shown."""


@dataclass(frozen=True, kw_only=True)
class PageQuestion:
    """What is asked."""

    image: str
    """The name of an added image."""
    text: str
    """The question."""
    head: Head | None = None
    """Which one answers. None: the first that is there."""
    earlier: tuple[Turn, ...] = ()
    """The questions and answers before it."""
    among: tuple[str, ...] = ()
    """Answers that it is chosen among. Empty: it is the model's own."""


@dataclass(frozen=True, kw_only=True)
class _Image:
    """An image as the model takes it."""

    pieces: Pieces
    seen: dict[Head, Seen] = field(default_factory=dict)
    """What each head that was asked made of it, once for all its questions."""


class Questions:
    """One model, asked by any number of threads, one at a time: an answer that is being written
    keeps the others waiting, so that what it takes in memory is taken once.

    Args:
        answerer: the model.
        name: what the page calls the model; no path.
    """

    def __init__(self, answerer: Answerer, *, name: str) -> None:
        self._answerer, self._name = answerer, name
        self._lock = threading.Lock()
        self._images: KeptImages[_Image] = KeptImages()
        heads: tuple[Head, ...] = get_args(Head)
        self._answerers: dict[Head, Answerer] = {
            head: replace(answerer, head=head)
            for head in heads
            if getattr(answerer.model, head) is not None
        }

    def about(self) -> dict[str, Any]:
        """What the page says of the model."""
        config, vocabulary = self._answerer.model.config, self._answerer.vocabulary
        return {
            "name": self._name,
            "num_parameters": sum(x.numel() for x in self._answerer.model.parameters()),
            "image_size": self._answerer.preprocess.image_size,
            "heads": list(self._answerers),
            "num_answers": 0 if vocabulary is None else len(vocabulary.answers),
            "reads_dialogues": config.reads_dialogues,
        }

    def add_image(self, data: bytes) -> dict[str, Any]:
        """Take in an image file; what the page needs to ask about it.

        Raises:
            Refusal: it is no image of a kind that we read, damaged or too large.
        """
        with self._lock, refusing("the image"):
            image = open_image(data, upright=True)
            try:
                pieces = pieces_of(self._answerer, image)
            except ValueError as error:
                raise SampleError("image too elongated") from error
            region = region_seen(self._answerer, image)
            return self._images.add(image, _Image(pieces=pieces), region=region)

    def picture(self, image_id: str) -> bytes:
        """An added image as the page shows it, WebP."""
        with self._lock:
            return self._images[image_id].picture

    def ask(self, asked: PageQuestion) -> Steps:
        """An answer as it is made: step by step `said`, what there is of it, with its `probability`
        (of a choice with the likeliest `answers`, `of` so many) and the tokens that it was
        `cut_after` where it had not ended, at the end what was `looked` at. Nobody else is answered
        until the steps are closed or at their end.

        Raises:
            Refusal: at the first step, what is asked cannot be answered.
        """
        with self._lock, _refusing_questions():
            image, head = self._images[asked.image].read, self._head(asked)
            answerer = self._answerers[head]
            earlier = self._readable(asked, image.pieces)
            left_out = (len(asked.earlier) - len(earlier)) // 2
            if head not in image.seen:
                image.seen[head] = see_pieces(answerer, image.pieces, is_fixed=False)
            seen = image.seen[head]
            if asked.among:
                steps = _chosen_of(answerer, seen, asked, earlier)
            elif head == "classify":
                steps = _chosen(answerer, seen, asked.text)
            else:
                steps = _written(answerer, seen, asked.text, earlier)
            with closing(steps):
                for step in steps:
                    yield {"head": head, "left_out": left_out, **_finite(step)}
            yield {"looked": _looked(answerer, image.pieces, asked.text, earlier)}

    def _head(self, asked: PageQuestion) -> Head:
        first = next(iter(self._answerers))
        head = asked.head or first
        if head not in self._answerers:
            raise Refusal(f"head = {head}: the model has only {first}")
        return head

    def _readable(self, asked: PageQuestion, pieces: Pieces) -> Sequence[Turn]:
        """The turns before that the model reads beside a question."""
        tokenizer = self._answerer.tokenizer
        if not tokenizer.reply_ids(asked.text):
            raise Refusal("the question has no words that the model reads; ask otherwise")
        reads_dialogues = self._answerer.model.config.reads_dialogues
        if asked.earlier and not reads_dialogues:
            raise Refusal("the model reads each question by itself; leave earlier ones away")
        refuse_cut(self._answerer, asked.text)
        if not reads_dialogues:
            return ()
        (count,) = pieces.counts
        return turns_with_room(self._answerer, count, asked.text, asked.earlier)


@contextmanager
def _refusing_questions() -> Iterator[None]:
    """What is wrong with a question, or with what the model makes of it, is told on the page."""
    try:
        yield
    except UsageError as error:
        raise Refusal(str(error)) from error


def _chosen(answerer: Answerer, seen: Seen, text: str) -> Steps:
    assert answerer.vocabulary is not None, "a classifier has answers"
    found = likeliest_answers(answerer, seen, text, most=NUM_CHOICES)
    yield _choice(found, of=len(answerer.vocabulary.answers))


def _chosen_of(
    answerer: Answerer, seen: Seen, asked: PageQuestion, earlier: Sequence[Turn]
) -> Steps:
    found = choose_among(answerer, seen, asked.text, asked.among, earlier=earlier)
    yield _choice(found, of=len(found))


def _choice(found: Sequence[Reply], *, of: int) -> dict[str, Any]:
    answers = [{"answer": one.answer, "probability": one.probability} for one in found]
    best = answers[0]
    told = {"said": best["answer"], "probability": best["probability"]}
    return told | {"answers": answers, "of": of}


def _written(answerer: Answerer, seen: Seen, text: str, earlier: Sequence[Turn]) -> Steps:
    for reply in stream_answer(answerer, seen, text, earlier=earlier):
        cut_after = answerer.answer_length if reply.is_cut else None
        yield {"said": reply.answer, "probability": reply.probability, "cut_after": cut_after}


def _looked(
    answerer: Answerer, pieces: Pieces, text: str, earlier: Sequence[Turn]
) -> dict[str, Any]:
    looked = look_at(answerer, pieces, text, earlier=earlier)
    entries = {
        place: [{"entry": entry, "weight": weight} for entry, weight in fired]
        for place, fired in looked.entries.items()
    }
    if looked.grid is None:
        return {"rows": None, "why": NO_PLACE, "entries": entries}
    if not bool(looked.grid.isfinite().all()):
        raise Refusal("where it looked is not finite: the model's weights overflow")
    return {"rows": looked.grid.tolist(), "why": "", "entries": entries}


def _finite(step: dict[str, Any]) -> dict[str, Any]:
    if not math.isfinite(step["probability"]):
        raise Refusal("the answer's probability is not finite: the model's weights overflow")
    return step
