"""Which questions a training would not use: every row is looked at, every image decoded once."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmtrain.data.members import json_fields
from mmtrain.data.questions.answers import build_vocabulary, compared_form, every_question
from mmtrain.data.questions.batches import QuestionReader
from mmtrain.data.questions.files import QuestionedImage
from mmtrain.data.questions.question import Question
from mmtrain.data.questions.rows import NO_ANSWER
from mmtrain.data.questions.source import (
    QuestionSource,
    known_questions,
    open_questions,
    refuse_unanswered,
)
from mmtrain.data.sample_check import check_with
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.source import SampleSource

_NUM_LOOKED_AT = 16


@dataclass(frozen=True, kw_only=True)
class QuestionReport:
    """What looking at all questions and images found."""

    num_questions: int
    """Questions that are well formed and have an answer."""
    num_images: int
    """Images that they are about."""
    reasons: dict[str, int]
    """How many rows, answers and images cannot be used, by reason."""
    named: tuple[str, ...]
    """A line for each of them; of images that cannot be read at most 100."""


class _Faults:
    """Counts what cannot be used, and keeps the lines that name it."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.named: list[str] = []

    def add(self, reason: str, line: object) -> None:
        self.reasons[reason] += 1
        self.named.append(str(line))


def check_question_files(
    data: tuple[str, ...],
    *,
    questions: str | None,
    annotations: str | None,
    image_key: str,
    min_count: int | None,
    workers: int,
) -> QuestionReport:
    """Look at all of a set's own files.

    Args:
        data: the folder of images, or `easy_vqa:PART`.
        questions: the set's file of questions.
        annotations: the file of answers of VQAv2 or OK-VQA.
        image_key: has no effect, and is refused.
        min_count: as vqa.min_count: questions of which all answers are rarer count; None: none do.
        workers: processes that read and decode; 0: this one.

    Raises:
        UsageError: a file cannot be read or is of no known form, or no question has an answer.
    """
    faults = _Faults()
    source = open_questions(
        data,
        questions=questions,
        annotations=annotations,
        key="data",
        image_key=image_key,
        on_fault=faults.add,
    )
    assert isinstance(source, QuestionSource), "no file of questions was given"
    asked = known_questions(source)
    if asked and not any(question.answers for question in asked):
        refuse_unanswered(source)
    for question in asked:
        if not question.answers:
            told = f"questions = {questions}: question_id {question.question_id} has no answers"
            faults.add(NO_ANSWER, told)
    answered = [left for image in source.images if (left := _answered(image)).questions]
    left = QuestionSource(answered)
    return _check(left, faults, min_count=min_count, workers=workers, samples=None)


def check_packed_questions(
    source: SampleSource, *, samples: np.ndarray | None, min_count: int | None, workers: int
) -> QuestionReport:
    """Look at samples whose .json holds questions; all of a source, or those of these numbers."""
    return _check(source, _Faults(), min_count=min_count, workers=workers, samples=samples)


def holds_questions(source: SampleSource, *, most: int = _NUM_LOOKED_AT) -> bool:
    """Whether the .json of some of the samples that are looked at, about `most` of them, has a list
    of questions."""
    step = max(1, source.num_samples // most)
    for sample in range(0, source.num_samples, step):
        try:
            fields = json_fields(source.read(sample, {"json"}).get("json"))
        except SampleError:
            continue
        if isinstance(fields.get("questions"), list):
            return True
    return False


def _check(
    source: SampleSource,
    faults: _Faults,
    *,
    min_count: int | None,
    workers: int,
    samples: np.ndarray | None,
) -> QuestionReport:
    asked = known_questions(source) or list(every_question(source, samples))
    if min_count is not None and asked:
        for line in _rare(asked, min_count=min_count):
            faults.add("answer too rare", line)
    num_images = source.num_samples if samples is None else samples.size
    if num_images:
        reader = QuestionReader(source, transform=None, captions={}, keep_fields=True)
        read = check_with(reader, samples=samples, workers=workers)
        faults.reasons.update(read.reasons)
        faults.named += map(str, read.named)
    return QuestionReport(
        num_questions=len(asked),
        num_images=num_images,
        reasons=dict(faults.reasons.most_common()),
        named=tuple(faults.named),
    )


def _answered(image: QuestionedImage) -> QuestionedImage:
    return replace(image, questions=tuple(q for q in image.questions if q.answers))


def _rare(asked: Sequence[Question], *, min_count: int) -> Iterator[str]:
    """A line for each question that a classifier of the frequent answers cannot answer rightly."""
    known = {*build_vocabulary(asked, min_count=min_count).answers}
    for question in asked:
        given = {compared_form(question, answer): None for answer in question.answers}
        if given and not given.keys() & known:
            yield (
                f"question_id {question.question_id}: its answer {next(iter(given))!r} is not that "
                f"of {min_count} questions, so no classifier learns it"
            )
