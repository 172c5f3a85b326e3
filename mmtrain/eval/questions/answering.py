"""Asking a VQA model every question of a set, over all ranks."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mmtrain.data.images.tiles import Pieces
from mmtrain.data.members import json_fields
from mmtrain.data.questions.question import Question, Said, questions_from_json
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.workers import iterate_batches
from mmtrain.errors import UsageError
from mmtrain.eval.encode import own_batches
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.asking import answer_texts
from mmtrain.eval.questions.choosing import choose_options, longest_reply
from mmtrain.eval.questions.reading import why_not_asked
from mmtrain.eval.questions.seeing import see_pieces
from mmtrain.eval.samples import EvalBatch, EvalBatches, Members, spans
from mmtrain.eval.together import gather_all, on_all_ranks

Probe = Literal["question", "image"]


@dataclass(frozen=True, kw_only=True)
class Answered(Said):
    """A question and what the model said."""

    probability: float
    """What the model gives it (of the whole answer, where it is written)."""
    image_key: str
    """The image's key in its source."""
    sample: int
    """The image's number in its source."""


def answer_all(
    answerer: Answerer, source: SampleSource, *, probe: Probe | None = None
) -> list[Answered]:
    """The model's answers to every question of a set, in the set's order, on every rank.

    Args:
        answerer: the model.
        source: images with questions.
        probe: `question`: every image is black, so that only the question tells; `image`: every
            question is empty.

    Raises:
        UsageError: on every rank, a sample cannot be used.
    """
    every = spans(source.num_samples, answerer.batch_size)
    numbers = [n for n in own_batches(len(every), answerer.group) if n is not None]
    batches = EvalBatches(
        source,
        answerer.preprocess,
        read_value=read_asked,
        names=("json",),
        spans=[every[number] for number in numbers],
        tiles=answerer.model.config.tiles,
    )
    own: list[tuple[int, list[Answered]]] = []
    faults: list[str] = []
    made = iterate_batches(
        batches,
        0,
        len(numbers),
        workers=answerer.workers,
        prefetch=2,
        pin_memory=answerer.device.type == "cuda",
    )
    with on_all_ranks(answerer.group, answerer.device), contextlib.closing(made):
        total, through = sum(len(every[number]) for number in numbers), 0
        for number, batch in zip(numbers, made, strict=True):
            faults += [str(fault) for fault in batch.faults]
            faults += _unaskable(answerer, _counted(batch))
            if not faults:
                own.append((number, _answer_batch(answerer, source, batch, probe)))
            through += len(every[number])
            if answerer.progress is not None:
                answerer.progress(through, total)
    held = gather_all((own, faults), group=answerer.group, device=answerer.device)
    _refuse([fault for _, some in held for fault in some])
    parts = sorted((part for some, _ in held for part in some), key=lambda part: part[0])
    return [answered for _, some in parts for answered in some]


def refuse_unaskable(answerer: Answerer, questions: Iterable[Question]) -> None:
    """Of questions that are known before any image is read, refuse those that a model of dialogues
    has no room for, whatever the image is cut into.

    Raises:
        UsageError: naming the first by its id.
    """
    _refuse(_unaskable(answerer, ((one, 1) for one in questions)))


def _unaskable(answerer: Answerer, asked: Iterable[tuple[Question, int]]) -> list[str]:
    """Why some questions cannot be asked, each about an image of so many pieces."""
    if not answerer.model.config.reads_dialogues:
        return []
    told: list[str] = []
    for question, num_pieces in asked:
        longest = longest_reply(answerer, question)
        why = why_not_asked(answerer, question.question, num_pieces, max_new_tokens=longest)
        told += [] if why is None else [f"question_id {question.question_id}: {why}"]
    return told


def _counted(batch: EvalBatch[tuple[Question, ...]]) -> Iterator[tuple[Question, int]]:
    """A batch's questions, each with its image's pieces."""
    counts = [1] * len(batch.values) if batch.pieces is None else batch.pieces.counts
    for questions, count in zip(batch.values, counts, strict=True):
        yield from ((question, count) for question in questions)


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UsageError(f"evaluation data: {faults[0]}{more}; mend or leave out such samples")


def read_asked(members: Members) -> tuple[Question, ...]:
    """A sample's questions.

    Raises:
        SampleError: its .json holds none.
    """
    try:
        return questions_from_json(json_fields(members.get("json")))
    except ValueError as error:
        raise SampleError(str(error)) from error


def _answer_batch(
    answerer: Answerer,
    source: SampleSource,
    batch: EvalBatch[tuple[Question, ...]],
    probe: Probe | None,
) -> list[Answered]:
    pieces = Pieces.whole(batch.images_BCHW) if batch.pieces is None else batch.pieces
    images_NCHW = pieces.images_NCHW.to(answerer.device, non_blocking=True)
    if probe == "question":
        images_NCHW = torch.zeros_like(images_NCHW)
    pieces = replace(pieces, images_NCHW=images_NCHW, place_N2=pieces.place_N2.to(answerer.device))
    seen = see_pieces(answerer, pieces, is_fixed=answerer.is_fixed)
    rows = [(row, one) for row, questions in enumerate(batch.values) for one in questions]
    asked = [(row, "" if probe == "image" else one.question) for row, one in rows]
    if answerer.choose is None:
        said = answer_texts(answerer, seen, asked)
    else:
        said = choose_options(answerer, seen, asked, [one for _, one in rows])
    return [
        Answered(
            question=question,
            prediction=reply.answer,
            is_cut=reply.is_cut,
            probability=reply.probability,
            image_key=source.key(batch.first + row),
            sample=batch.first + row,
        )
        for (row, question), reply in zip(rows, said, strict=True)
    ]
