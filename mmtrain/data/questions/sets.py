"""Rows as questions of VQAv2, OK-VQA (two files), VizWiz (a list), GQA (a table) and easy-VQA."""

from pathlib import Path
from typing import Any

from mmtrain.data.questions.json_file import read_json_file
from mmtrain.data.questions.question import Question
from mmtrain.data.questions.rows import (
    MALFORMED,
    NO_ANSWER,
    TWICE,
    NoAnswersError,
    OnFault,
    Rows,
    by_question,
    image_id_of,
    kind_of,
    no_answers,
    other_type,
    table_of,
    text_of,
    there_twice,
    unknown_form,
)
from mmtrain.errors import UsageError


def vqa_v2_rows(
    questions: list[Any], annotations: str | None, path: Path, on_fault: OnFault
) -> Rows:
    """VQAv2's and OK-VQA's questions, with the answers of their other file."""
    asked = by_question(questions, f"questions = {path}", on_fault)
    answers = {} if annotations is None else _annotations(annotations, asked, path, on_fault)
    rows = []
    for question_id, row in asked.items():
        if annotations is not None and question_id not in answers:
            continue
        try:
            rows.append(_vqa_v2_row(row, answers.get(question_id), annotations, path))
        except NoAnswersError as error:
            on_fault(NO_ANSWER, error)
        except UsageError as error:
            on_fault(MALFORMED, error)
    return rows


def _vqa_v2_row(
    row: dict[str, Any], answered: dict[str, Any] | None, annotations: str | None, path: Path
) -> tuple[str, Question]:
    question_id, known = row["question_id"], answered or {}
    told = f"questions = {path}: question_id {question_id}"
    image_id = image_id_of(row, "image_id", told)
    answers_told = f"annotations = {annotations}: question_id {question_id}"
    given = _given(known, answers_told)
    if answered is not None and not given:
        raise no_answers(answers_told)
    question = Question(
        question_id=question_id,
        question=text_of(row, "question", told),
        answers=given,
        question_type=kind_of(known, "question_type", answers_told),
        answer_type=kind_of(known, "answer_type", answers_told),
    )
    return image_id, question


def _annotations(
    file: str, asked: dict[Any, dict[str, Any]], path: Path, on_fault: OnFault
) -> dict[Any, Any]:
    """The annotation of each question that is asked, of the same image."""
    content = read_json_file(Path(file), "annotations")
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        is_questions = isinstance(content, dict) and isinstance(content.get("questions"), list)
        what = "holds questions" if is_questions else "has no list of annotations"
        raise UsageError(
            f"annotations = {file} {what}; name VQAv2's file of answers to the questions in {path}"
        )
    answers = by_question(content["annotations"], f"annotations = {file}", on_fault)
    types = table_of(content, "question_types", f"annotations = {file}")
    num_missing = sum(question_id not in answers for question_id in asked)
    fitting = {}
    for question_id, row in asked.items():
        if (answered := answers.get(question_id)) is None:
            error = UsageError(
                f"annotations = {file}: {num_missing} of the {len(asked)} questions in {path} have "
                f"no annotation, such as question_id {question_id!r}"
                f"{other_type(question_id, answers, 'it has')}; name the files of one split"
            )
            on_fault("no annotation", error)
            continue
        image_id, own = answered.get("image_id"), row.get("image_id")
        if image_id is not None and own is not None and str(image_id) != str(own):
            error = UsageError(
                f"annotations = {file}: the answers to question_id {question_id} are about image "
                f"{image_id}, the question in {path} about {own}; name the files of one split"
            )
            on_fault("answers about another image", error)
            continue
        # OK-VQA calls its kinds "one" to "other" and says elsewhere what they are.
        kind = answered.get("question_type")
        known = types.get(kind) if isinstance(kind, str) else None
        fitting[question_id] = answered | {"question_type": kind if known is None else known}
    return fitting


def _given(row: dict[str, Any], told: str) -> tuple[str, ...]:
    """The annotators' answers in a row of VQAv2 or VizWiz."""
    try:
        given = tuple(one["answer"] for one in row.get("answers", ()))
    except (TypeError, KeyError) as error:
        raise UsageError(
            f'{told} has answers of another form than {{"answer": ...}}; fetch the file again'
        ) from error
    for answer in given:
        if not isinstance(answer, str):
            raise UsageError(f"{told}: the answer {answer!r} is no text; write it as a string")
    return given


def vizwiz_rows(content: list[Any], path: Path, on_fault: OnFault) -> Rows:
    """VizWiz's list, of one question an image."""
    rows: Rows = []
    seen: set[str] = set()
    fits = (isinstance(row, dict) and "image" in row and "question" in row for row in content)
    if not any(fits):
        raise unknown_form(path)
    for number, row in enumerate(content):
        try:
            image, question = _vizwiz_row(row, number, path)
        except NoAnswersError as error:
            on_fault(NO_ANSWER, error)
            continue
        except UsageError as error:
            on_fault(MALFORMED, error)
            continue
        if image in seen:
            on_fault(TWICE, there_twice(f"questions = {path}", f"image {image}"))
            continue
        seen.add(image)
        rows.append((image, question))
    return rows


def _vizwiz_row(row: Any, number: int, path: Path) -> tuple[str, Question]:
    if not isinstance(row, dict) or "image" not in row:
        raise UsageError(f"questions = {path}: row {number} names no image; fetch the file again")
    told = f"questions = {path}: image {row['image']!r}"
    image = text_of(row, "image", told)
    given = _given(row, told)
    if "answers" in row and not given:
        raise no_answers(f"questions = {path}: question_id {image}")
    question = Question(
        # VizWiz has no ids: one question an image, named by the image.
        question_id=image,
        question=text_of(row, "question", told),
        answers=given,
        answer_type=kind_of(row, "answer_type", told),
        # Those of its test set do not say; the key tells the form all the same.
        extra={"answerable": row.get("answerable")},
    )
    return image, question


_GQA_EXTRA = ("isBalanced", "entailed", "equivalent", "groups", "types")
_UNCOUNTED = ("exist", "query: name", "choose name")
"""Operations that the published evaluation counts as no step of reasoning."""


def gqa_rows(content: dict[str, Any], path: Path, on_fault: OnFault) -> Rows:
    """GQA's table, by the questions' ids."""
    rows: Rows = []
    fits = (isinstance(row, dict) and "imageId" in row for row in content.values())
    if not any(fits):
        raise unknown_form(path)
    for question_id, row in content.items():
        try:
            rows.append(_gqa_row(question_id, row, path))
        except UsageError as error:
            on_fault(MALFORMED, error)
    return rows


def _gqa_row(question_id: str, row: Any, path: Path) -> tuple[str, Question]:
    told = f"questions = {path}: question {question_id}"
    if not isinstance(row, dict):
        raise UsageError(f"{told} is {row!r}, no table; fetch the file again")
    types = table_of(row, "types", told)
    for name, table in (("global", table_of(row, "groups", told)), ("detailed", types)):
        kind_of(table, name, told)
    _refuse_no_ids(row.get("entailed"), told)
    extra = {"isBalanced": None} | {n: row[n] for n in _GQA_EXTRA if row.get(n) is not None}
    if not isinstance(extra["isBalanced"], bool | None):
        raise UsageError(f"{told}: isBalanced = {extra['isBalanced']!r} is neither true nor false")
    if "semantic" in row:
        extra["num_steps"] = _num_steps(row["semantic"], told)
    question = Question(
        question_id=question_id,
        question=text_of(row, "question", told),
        answers=(text_of(row, "answer", told),) if "answer" in row else (),
        question_type=kind_of(types, "structural", told),
        answer_type=kind_of(types, "semantic", told),
        extra=extra,
    )
    return image_id_of(row, "imageId", told), question


def _refuse_no_ids(value: Any, told: str) -> None:
    """What follows from a question's answer are ids of questions."""
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise UsageError(f"{told}: entailed = {value!r} is no list of ids; fetch the file again")


def _num_steps(program: Any, told: str) -> int:
    """Steps of reasoning in a question's program, as the published evaluation counts them."""
    try:
        steps = [f"{step['operation']}: {step['argument']}" for step in program]
    except (TypeError, KeyError) as error:
        raise UsageError(
            f"{told}: its semantic is no list of operations with arguments; fetch the file again"
        ) from error
    return sum(not any(word in step for word in _UNCOUNTED) for step in steps)


def easy_vqa_rows(content: list[Any], path: Path, on_fault: OnFault) -> Rows:
    """easy-VQA's list of question, answer and image."""
    rows: Rows = []
    for number, row in enumerate(content):
        try:
            rows.append(_easy_vqa_row(row, number, path))
        except UsageError as error:
            on_fault(MALFORMED, error)
    return rows


def _easy_vqa_row(row: Any, number: int, path: Path) -> tuple[str, Question]:
    told = f"questions = {path}: row {number}"
    if not isinstance(row, list) or len(row) != 3:
        raise UsageError(f"{told} is no question, answer and image; fetch the file again")
    fields: dict[str, Any] = dict(zip(("question", "answer", "image"), row, strict=True))
    answer = text_of(fields, "answer", told)
    question = Question(
        question_id=number,
        question=text_of(fields, "question", told),
        answers=(answer,),
        answer_type="yes/no" if answer in ("yes", "no") else "other",
    )
    return image_id_of(fields, "image", told), question
