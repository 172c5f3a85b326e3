"""Each set's rows as questions: VQAv2's two files, VizWiz's list, GQA's table, easy-VQA's triples.

A row that is no question goes to `on_fault`, which refuses the file (`refuse`) or counts the row.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmtrain.data.questions.json_file import read_json_file
from mmtrain.data.questions.question import Question
from mmtrain.errors import UsageError

Rows = list[tuple[str, Question]]
"""The image's id and a question about it."""

OnFault = Callable[[str, UsageError], None]
"""Is told why a row cannot be used, in few words and in a line that names it."""

MALFORMED = "malformed row"
NO_ANSWER = "no answer"
TWICE = "there twice"


def refuse(_reason: str, error: UsageError) -> None:
    """What is told of a row that cannot be used, where all must be."""
    raise error


def unknown_form(path: Path) -> UsageError:
    """Says which forms there are."""
    return UsageError(
        f"questions = {path} is of no known form; name a file of VQAv2, VizWiz, GQA or easy-VQA"
    )


def vqa_v2_rows(
    questions: list[Any], annotations: str | None, path: Path, on_fault: OnFault
) -> Rows:
    """VQAv2's questions, with the answers of its other file."""
    asked = _by_question(questions, f"questions = {path}", on_fault)
    answers = {} if annotations is None else _annotations(annotations, asked, path, on_fault)
    rows = []
    for question_id, row in asked.items():
        if annotations is not None and question_id not in answers:
            continue
        try:
            rows.append(_vqa_v2_row(row, answers.get(question_id), annotations, path))
        except _NoAnswersError as error:
            on_fault(NO_ANSWER, error)
        except UsageError as error:
            on_fault(MALFORMED, error)
    return rows


def _vqa_v2_row(
    row: dict[str, Any], answered: dict[str, Any] | None, annotations: str | None, path: Path
) -> tuple[str, Question]:
    question_id, known = row["question_id"], answered or {}
    told = f"questions = {path}: question_id {question_id}"
    image_id = _image_id(row, "image_id", told)
    given = _given(known, f"annotations = {annotations}: question_id {question_id}")
    if answered is not None and not given:
        raise _no_answers(annotations, question_id)
    question = Question(
        question_id=question_id,
        question=_text(row, "question", told),
        answers=given,
        question_type=known.get("question_type", ""),
        answer_type=known.get("answer_type", ""),
    )
    return image_id, question


def _by_question(rows: list[Any], told: str, on_fault: OnFault) -> dict[Any, dict[str, Any]]:
    """VQAv2's rows by their question's id, in the order of the file."""
    found: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        question_id = row.get("question_id") if isinstance(row, dict) else None
        if not isinstance(question_id, int | str) or isinstance(question_id, bool):
            error = UsageError(
                f"{told}: row {number} is without 'question_id'; fetch the file again"
            )
            on_fault(MALFORMED, error)
        elif question_id in found:
            on_fault(TWICE, _twice(told, f"question_id {question_id}"))
        else:
            found[question_id] = row
    return found


def _twice(told: str, what: str) -> UsageError:
    return UsageError(
        f"{told}: {what} is there twice, as where two splits were joined; name the file of one "
        "split"
    )


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
    answers = _by_question(content["annotations"], f"annotations = {file}", on_fault)
    num_missing = sum(question_id not in answers for question_id in asked)
    fitting = {}
    for question_id, row in asked.items():
        if (answered := answers.get(question_id)) is None:
            error = UsageError(
                f"annotations = {file}: {num_missing} of the {len(asked)} questions in {path} have "
                f"no annotation, such as question_id {question_id}; name the files of one split"
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
        fitting[question_id] = answered
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


def _text(row: dict[str, Any], name: str, told: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        what = f"{name} = {value!r} is no text" if name in row else f"without {name!r}"
        raise UsageError(f"{told}: {what}; fetch the file again")
    return value


def _image_id(row: dict[str, Any], name: str, told: str) -> str:
    value = row.get(name)
    if not isinstance(value, int | str) or isinstance(value, bool):
        what = f"{name} = {value!r} names no image" if name in row else f"without {name!r}"
        raise UsageError(f"{told}: {what}; fetch the file again")
    return str(value)


class _NoAnswersError(UsageError):
    """A question of a set that has answers to the others."""


def _no_answers(file: object, question_id: object) -> UsageError:
    return _NoAnswersError(
        f"annotations = {file}: question_id {question_id} has no answers; mend or leave it out"
    )


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
        except _NoAnswersError as error:
            on_fault(NO_ANSWER, error)
            continue
        except UsageError as error:
            on_fault(MALFORMED, error)
            continue
        if image in seen:
            on_fault(TWICE, _twice(f"questions = {path}", f"image {image}"))
            continue
        seen.add(image)
        rows.append((image, question))
    return rows


def _vizwiz_row(row: Any, number: int, path: Path) -> tuple[str, Question]:
    if not isinstance(row, dict) or "image" not in row:
        raise UsageError(f"questions = {path}: row {number} names no image; fetch the file again")
    told = f"questions = {path}: image {row['image']!r}"
    image = _text(row, "image", told)
    given = _given(row, told)
    if "answers" in row and not given:
        raise _no_answers(path, image)
    question = Question(
        # VizWiz has no ids: one question an image, named by the image.
        question_id=image,
        question=_text(row, "question", told),
        answers=given,
        answer_type=row.get("answer_type", ""),
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
    types = _table(row, "types", told)
    _table(row, "groups", told)
    extra = {"isBalanced": None} | {name: row[name] for name in _GQA_EXTRA if name in row}
    if not isinstance(extra["isBalanced"], bool | None):
        raise UsageError(f"{told}: isBalanced = {extra['isBalanced']!r} is neither true nor false")
    if "semantic" in row:
        extra["num_steps"] = _num_steps(row["semantic"], told)
    question = Question(
        question_id=question_id,
        question=_text(row, "question", told),
        answers=(_text(row, "answer", told),) if "answer" in row else (),
        question_type=types.get("structural", ""),
        answer_type=types.get("semantic", ""),
        extra=extra,
    )
    return _image_id(row, "imageId", told), question


def _table(row: dict[str, Any], name: str, told: str) -> dict[str, Any]:
    value = row.get(name) or {}
    if not isinstance(value, dict):
        raise UsageError(f"{told}: {name} = {value!r} is no table; fetch the file again")
    return value


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
    answer = _text(fields, "answer", told)
    question = Question(
        question_id=number,
        question=_text(fields, "question", told),
        answers=(answer,),
        answer_type="yes/no" if answer in ("yes", "no") else "other",
    )
    return _image_id(fields, "image", told), question
