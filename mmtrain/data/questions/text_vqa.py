"""TextVQA's file: a list of questions with ten answers each, below `data`."""

from pathlib import Path
from typing import Any

from mmtrain.data.questions.question import Question
from mmtrain.data.questions.rows import (
    MALFORMED,
    NO_ANSWER,
    NoAnswersError,
    OnFault,
    Rows,
    by_question,
    image_id_of,
    no_answers,
    text_of,
    unknown_form,
)
from mmtrain.errors import UsageError

_NUM_ANSWERS = 10
"""What the published rule is written for."""


def text_vqa_rows(content: list[Any], path: Path, on_fault: OnFault) -> Rows:
    """The questions of TextVQA 0.5.1."""
    fits = (isinstance(row, dict) and {"question", "image_id"} <= row.keys() for row in content)
    if not any(fits):
        raise unknown_form(path)
    rows: Rows = []
    for row in by_question(content, f"questions = {path}", on_fault).values():
        try:
            rows.append(_row(row, path))
        except NoAnswersError as error:
            on_fault(NO_ANSWER, error)
        except UsageError as error:
            on_fault(MALFORMED, error)
    return rows


def _row(row: dict[str, Any], path: Path) -> tuple[str, Question]:
    question_id = row["question_id"]
    told = f"questions = {path}: question_id {question_id}"
    question = Question(
        question_id=question_id,
        question=text_of(row, "question", told),
        answers=_answers(row["answers"], question_id, path) if "answers" in row else (),
        extra={"form": "textvqa"},
    )
    return image_id_of(row, "image_id", told), question


def _answers(given: Any, question_id: object, path: Path) -> tuple[str, ...]:
    told = f"questions = {path}: question_id {question_id}"
    if given == []:
        raise no_answers(told)
    if not isinstance(given, list) or not all(isinstance(answer, str) for answer in given):
        raise UsageError(f"{told}: answers = {given!r} is no list of texts; fetch the file again")
    if len(given) != _NUM_ANSWERS:
        raise UsageError(
            f"{told} has {len(given)} answers, and TextVQA's figures are over {_NUM_ANSWERS}; "
            "fetch the file again"
        )
    return tuple(given)
