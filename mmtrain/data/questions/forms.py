"""The files of questions and answers that VQAv2, VizWiz, GQA and easy-VQA publish, as they are.

Nothing here needs torch, so that a file of answers is judged without waiting for it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtrain.data.questions.question import Question
from mmtrain.errors import UsageError

Rows = list[tuple[str, Question]]
"""The image's id and a question about it."""


@dataclass(frozen=True, kw_only=True)
class QuestionFile:
    """What one file asks."""

    rows: Rows
    """In the order of the file."""
    subtype: object = None
    """VQAv2's `data_subtype`, such as `val2014`."""


def read_question_file(questions: str, annotations: str | None) -> QuestionFile:
    """The questions of a file with their answers; what form it has is told from its content.

    Args:
        questions: VQAv2's questions, VizWiz's list, GQA's table or easy-VQA's triples.
        annotations: VQAv2's answers.

    Raises:
        UsageError: a file is missing, of no known form, another one than its name says, or the two
            are not of the same questions.
    """
    path = Path(questions)
    content = read_json_file(path, "questions")
    if isinstance(content, dict) and isinstance(content.get("questions"), list):
        rows, subtype = (
            _vqa_v2(content["questions"], annotations, path),
            content.get("data_subtype"),
        )
    else:
        rows, subtype = _others(content, annotations, path), None
    if not rows:
        raise UsageError(f"questions = {path} holds no question; name another file")
    return QuestionFile(rows=rows, subtype=subtype)


def _others(content: Any, annotations: str | None, path: Path) -> Rows:
    """The rows of a set that keeps questions and answers in one file."""
    if other := what_it_is(content):
        given = f" (and annotations = {annotations})" if annotations is not None else ""
        swapped = " the two are swapped:" if other.is_annotations and given else ""
        raise UsageError(f"questions = {path}{given}:{swapped} this file {other.told}")
    if annotations is not None:
        raise UsageError(
            f"annotations = {annotations}: only VQAv2 has such a file beside its questions, and "
            f"{path} is none of its; leave it out"
        )
    if isinstance(content, dict):
        return _gqa(content, path)
    if isinstance(content, list) and content and isinstance(content[0], list):
        return _easy_vqa(content, path)
    if isinstance(content, list):
        return _vizwiz(content, path)
    raise _unknown_form(path)


def read_json_file(path: Path, key: str) -> Any:
    """A file's JSON.

    Raises:
        UsageError: it cannot be read, is no JSON, or an object has a key twice, of which JSON's
            readers would keep the last alone.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_each_key_once)
    except OSError as error:
        raise UsageError(f"{key} = {path}: {error.strerror}; name a file that exists") from error
    except _TwiceError as error:
        raise UsageError(
            f"{key} = {path}: {error} is there twice; name the file of one split"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{key} = {path} is no JSON ({error}); fetch it again") from error


class _TwiceError(ValueError):
    """A key that an object has twice."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return content


@dataclass(frozen=True, kw_only=True)
class OtherFile:
    """A file of these sets that asks nothing."""

    told: str
    """What it is, and what to do."""
    is_annotations: bool = False
    """VQAv2's answers."""


def what_it_is(content: Any) -> OtherFile | None:
    """Which of the sets' other files this is; None: it may be one of questions."""
    rows = content.get("annotations") if isinstance(content, dict) else None
    if isinstance(rows, list):
        if rows and isinstance(rows[0], dict) and "question_id" not in rows[0]:
            return OtherFile(told="holds COCO's captions or objects; name VQAv2's questions")
        return OtherFile(
            told="holds VQAv2's annotations, the answers; name it as annotations "
            "(--annotations, vqa.data.annotations) and the file of questions as questions",
            is_annotations=True,
        )
    if isinstance(content, dict) and content:
        first = next(iter(content.values()))
        keys = first.keys() if isinstance(first, dict) else ()
        if "objects" in keys and "question" not in keys:
            return OtherFile(told="holds GQA's scene graphs; name its questions")
        if "valid" in keys and "plausible" in keys:
            return OtherFile(told="holds GQA's choices (--choices); name its questions")
    if isinstance(content, list) and content and isinstance(content[0], dict):
        keys = content[0].keys()
        if "question" not in keys and keys & {"answer", "prediction", "answers"}:
            return OtherFile(
                told="holds answers without questions (`mmtrain eval answers --predictions` judges "
                "such a file); name the questions that they answer"
            )
    return None


def _unknown_form(path: Path) -> UsageError:
    return UsageError(
        f"questions = {path} is of no known form; name a file of VQAv2, VizWiz, GQA or easy-VQA"
    )


def _vqa_v2(questions: list[Any], annotations: str | None, path: Path) -> Rows:
    asked = _by_question(questions, f"questions = {path}")
    answers = None if annotations is None else _annotations(annotations, asked, path)
    rows = []
    for question_id, row in asked.items():
        told = f"questions = {path}: question_id {question_id}"
        image_id = _image_id(row, "image_id", told)
        known = {} if answers is None else answers[question_id]
        given = _given(known, f"annotations = {annotations}: question_id {question_id}")
        if answers is not None and not given:
            raise _no_answers(annotations, question_id)
        question = Question(
            question_id=question_id,
            question=_text(row, "question", told),
            answers=given,
            question_type=known.get("question_type", ""),
            answer_type=known.get("answer_type", ""),
        )
        rows.append((image_id, question))
    return rows


def _by_question(rows: list[Any], told: str) -> dict[Any, dict[str, Any]]:
    """VQAv2's rows by their question's id, in the order of the file."""
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        question_id = row.get("question_id") if isinstance(row, dict) else None
        if not isinstance(question_id, int | str) or isinstance(question_id, bool):
            raise UsageError(f"{told}: a row without 'question_id'; fetch the file again")
        if question_id in found:
            raise _twice(told, f"question_id {question_id}")
        found[question_id] = row
    return found


def _twice(told: str, what: str) -> UsageError:
    return UsageError(
        f"{told}: {what} is there twice, as where two splits were joined; name the file of one "
        "split"
    )


def _annotations(file: str, asked: dict[Any, dict[str, Any]], path: Path) -> dict[Any, Any]:
    """The annotation of each question that is asked, of the same image."""
    content = read_json_file(Path(file), "annotations")
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        is_questions = isinstance(content, dict) and isinstance(content.get("questions"), list)
        what = "holds questions" if is_questions else "has no list of annotations"
        raise UsageError(
            f"annotations = {file} {what}; name VQAv2's file of answers to the questions in {path}"
        )
    answers = _by_question(content["annotations"], f"annotations = {file}")
    if missing := [question_id for question_id in asked if question_id not in answers]:
        raise UsageError(
            f"annotations = {file}: {len(missing)} of the {len(asked)} questions in {path} have no "
            f"annotation, the first is question_id {missing[0]}; name the files of one split"
        )
    for question_id, row in asked.items():
        image_id, own = answers[question_id].get("image_id"), row.get("image_id")
        if image_id is not None and own is not None and str(image_id) != str(own):
            raise UsageError(
                f"annotations = {file}: the answers to question_id {question_id} are about image "
                f"{image_id}, the question in {path} about {own}; name the files of one split"
            )
    return answers


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
    if not isinstance(value, int | str):
        what = f"{name} = {value!r} names no image" if name in row else f"without {name!r}"
        raise UsageError(f"{told}: {what}; fetch the file again")
    return str(value)


def _no_answers(file: object, question_id: object) -> UsageError:
    return UsageError(
        f"annotations = {file}: question_id {question_id} has no answers; mend or leave it out"
    )


def _vizwiz(content: list[Any], path: Path) -> Rows:
    rows: Rows = []
    seen: set[str] = set()
    for row in content:
        if not isinstance(row, dict) or "image" not in row or "question" not in row:
            raise _unknown_form(path)
        told = f"questions = {path}: image {row['image']!r}"
        image = _text(row, "image", told)
        if image in seen:
            raise _twice(f"questions = {path}", f"image {image}")
        seen.add(image)
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
        rows.append((image, question))
    return rows


_GQA_EXTRA = ("isBalanced", "entailed", "equivalent", "groups", "types")
_UNCOUNTED = ("exist", "query: name", "choose name")
"""Operations that the published evaluation counts as no step of reasoning."""


def _gqa(content: dict[str, Any], path: Path) -> Rows:
    rows = []
    for question_id, row in content.items():
        if not isinstance(row, dict) or "imageId" not in row or "question" not in row:
            raise _unknown_form(path)
        told = f"questions = {path}: question {question_id}"
        types = _table(row, "types", told)
        _table(row, "groups", told)
        extra = {"isBalanced": None} | {name: row[name] for name in _GQA_EXTRA if name in row}
        if not isinstance(extra["isBalanced"], bool | None):
            raise UsageError(
                f"{told}: isBalanced = {extra['isBalanced']!r} is neither true nor false"
            )
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
        rows.append((_image_id(row, "imageId", told), question))
    return rows


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


def _easy_vqa(content: list[Any], path: Path) -> Rows:
    rows = []
    for number, row in enumerate(content):
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
        rows.append((_image_id(fields, "image", told), question))
    return rows
