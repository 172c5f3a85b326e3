"""`mmtrain ask`: a model is asked about one picture."""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from mmtrain.commands.answer_list import read_answer_list
from mmtrain.commands.evaluate import ModelOptions
from mmtrain.commands.outputs import refuse_overwriting
from mmtrain.commands.vqa import build_answerer
from mmtrain.data.images.decode import open_image
from mmtrain.data.images.tiles import Pieces
from mmtrain.data.questions.question import as_shown
from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError
from mmtrain.eval.look.answer_picture import answer_picture
from mmtrain.eval.look.answers import NO_PLACE
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.asking import (
    Reply,
    answer_texts,
    likeliest_answers,
    stream_answer,
)
from mmtrain.eval.questions.choosing import choose_among
from mmtrain.eval.questions.looking import look_at, region_seen
from mmtrain.eval.questions.reading import refuse_cut
from mmtrain.eval.questions.seeing import Seen, pieces_of, see_pieces
from mmtrain.models.vqa import Head

_SHOWN = 5
"""Answers of a classifier."""


def ask_command(
    *,
    model: ModelOptions,
    image: Path,
    questions: list[str],
    answers: Path | None,
    head: Head | None,
    out: Path | None,
) -> None:
    """Print answers with probabilities, and draw where the model looked.

    Args:
        model: which, and how it is run.
        image: a picture.
        questions: about it, each by itself.
        answers: a file of those to choose among; None: the model's own.
        head: which one answers; None: the first that is there.
        out: a .png.
    """
    if out is not None and out.suffix != ".png":
        raise UsageError(f"out = {out} must end in .png")
    refuse_overwriting([image, *([] if answers is None else [answers])], {"out": out})
    among = None if answers is None else read_answer_list(answers)
    if not all(question.strip() for question in questions):
        raise UsageError("question = '' asks nothing; is a variable not set?")
    answerer = build_answerer(model, head)
    for question in questions:
        try:
            refuse_cut(answerer, question)
        except UsageError as error:
            raise UsageError(f"question = {question[:40]} ...: {error}") from error
    try:
        picture = open_image(image.read_bytes(), upright=True)
        pieces = pieces_of(answerer, picture)
    except OSError as error:
        raise UsageError(f"image = {image}: {error.strerror}; name a picture") from error
    except (SampleError, ValueError) as error:
        raise UsageError(f"image = {image}: {error}; name another picture") from error
    seen = see_pieces(answerer, pieces, is_fixed=False)
    for number, question in enumerate(questions, 1):
        print(question)
        if among is None and answerer.chosen_head == "generate" and sys.stdout.isatty():
            best = _told_as_written(answerer, stream_answer(answerer, seen, question))
        else:
            try:
                said = _candidates(answerer, seen, question, among)
            except UsageError as error:
                raise (
                    error if answers is None else UsageError(f"answers = {answers}: {error}")
                ) from error
            for reply in said:
                print(f"  {reply.answer:20} {_told_sure(answerer, reply)}")
            best = said[0]
        if out is not None:
            path = out if len(questions) == 1 else out.with_stem(f"{out.stem}-{number}")
            _draw(answerer, picture, pieces, question, best, path)


def _told_sure(answerer: Answerer, reply: Reply) -> str:
    """How likely an answer is, and whether it is a whole one.

    Raises:
        UsageError: there is no telling.
    """
    if not math.isfinite(reply.probability):
        raise UsageError("the answer's probability is not finite: the model's weights overflow")
    cut = f"cut off after {answerer.answer_length} tokens: it had not ended"
    return f"{reply.probability:.2%}{f'  ({cut})' if reply.is_cut else ''}"


def _told_as_written(answerer: Answerer, steps: Iterator[Reply]) -> Reply:
    """Print an answer to a terminal token by token, then its probability -> the whole."""
    shown, last = "", Reply("", 0.0)
    print("  ", end="", flush=True)
    for last in steps:
        # What a token does to the letters before it cannot be taken back here.
        if last.answer.startswith(shown):
            print(last.answer[len(shown) :], end="", flush=True)
            shown = last.answer
    if shown != last.answer:
        print(f"\n  {last.answer}", end="")
    print(f"{'':{max(0, 20 - len(last.answer))}} {_told_sure(answerer, last)}")
    return last


def _candidates(
    answerer: Answerer, seen: Seen, question: str, among: Sequence[str] | None
) -> list[Reply]:
    """Those of a list or the likeliest of a classifier, the likeliest first, or the one that was
    written."""
    if among is not None:
        try:
            return choose_among(answerer, seen, question, among)
        except UsageError as error:
            raise UsageError(f"answers: {error}") from error
    if answerer.chosen_head == "generate":
        return answer_texts(answerer, seen, [(0, question)])
    return likeliest_answers(answerer, seen, question, most=_SHOWN)


def _draw(
    answerer: Answerer,
    picture: Image.Image,
    pieces: Pieces,
    question: str,
    best: Reply,
    path: Path,
) -> None:
    looked = look_at(answerer, pieces, question)
    if looked.grid is None:
        raise UsageError(f"out = {path}: {NO_PLACE}; leave --out away")
    for place, entries in looked.entries.items():
        fired = ", ".join(f"{entry} ({weight:.1%})" for entry, weight in entries)
        print(f"  dictionary of the {place}: entries {fired}")
    drawn = answer_picture(
        picture,
        looked.grid,
        region=region_seen(answerer, picture),
        question=question,
        answer=as_shown(best.answer, is_cut=best.is_cut),
        probability=best.probability,
    )
    try:
        drawn.save(path)
    except OSError as error:
        raise UsageError(f"out = {path} cannot be written: {error}") from error
    print(f"  wrote {path}")
