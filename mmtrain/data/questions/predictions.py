"""Files of answers, in the forms that the sets' official evaluations read."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmtrain.data.questions.json_file import read_json_file
from mmtrain.data.questions.letters import LETTERS, letter_of
from mmtrain.data.questions.options import options_of
from mmtrain.data.questions.question import Form, Question, Said
from mmtrain.data.questions.rows import other_type
from mmtrain.errors import UsageError
from mmtrain.files import replace_file

FIELDS: dict[Form, tuple[str, str]] = {
    "vqa": ("question_id", "answer"),
    "vizwiz": ("image", "answer"),
    "gqa": ("questionId", "prediction"),
    "textvqa": ("question_id", "answer"),
    "pope": ("question_id", "answer"),
    "scienceqa": ("question_id", "answer"),
    "choice": ("question_id", "answer"),
}
"""What a row calls the question's id and the answer."""
_SETS: dict[Form, str] = {
    "vqa": "VQAv2's",
    "vizwiz": "VizWiz's",
    "gqa": "GQA's",
    "textvqa": "TextVQA's",
    "pope": "POPE's",
    "scienceqa": "ScienceQA's",
    "choice": "multiple choice's",
}
_BY_LINE: tuple[Form, ...] = ("pope",)
"""Whose evaluation reads an object a line, in the order of the questions' file."""
_LLAVA: tuple[Form, ...] = ("pope", "scienceqa", "choice")
"""Sets whose answers LLaVA's programs write with the field `text`."""
_ASKING = {"answers", "question", "label", "image", "options", "choices"}
"""Fields of such a set's questions, which may have text and answer, too."""


def one_form(questions: Iterable[Question]) -> Form:
    """The form that all of the questions have.

    Raises:
        UsageError: they are of several sets, which no official evaluation takes together.
    """
    forms: list[Form] = []
    for question in questions:
        if question.form not in forms:
            forms.append(question.form)
    if len(forms) > 1:
        names = " and ".join(_SETS[form] for form in forms)
        raise UsageError(f"questions: some are in {names} form each; evaluate each set by itself")
    return forms[0]


def write_predictions(path: Path, answered: Sequence[Said]) -> None:
    """Answers as a file that the set's official evaluation reads.

    Raises:
        UsageError: the file cannot be written, the questions are of several sets, or one id is
            there twice.
    """
    seen: set[int | str] = set()
    for one in answered:
        if one.question.question_id in seen:
            raise UsageError(
                f"predictions = {path}: question_id {one.question.question_id} is asked twice, as "
                "where shards of two sets are read as one; evaluate each by itself"
            )
        seen.add(one.question.question_id)
    form = one_form(one.question for one in answered)
    id_name, answer_name = FIELDS[form]
    rows: Any = [
        {id_name: one.question.question_id, answer_name: one.prediction} for one in answered
    ]
    if form in _BY_LINE:
        rows.sort(key=lambda row: (isinstance(row[id_name], str), row[id_name]))
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        rows = _places(answered) if form == "scienceqa" else rows
        text = json.dumps(rows, ensure_ascii=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text + "\n")
    except OSError as error:
        raise UsageError(f"predictions = {path} cannot be written: {error}") from error


def _places(answered: Sequence[Said]) -> dict[str, Any]:
    """As ScienceQA's published evaluation reads answers: the place of each option from 0, -1 where
    an answer names none; what was said stands beside it."""
    places, texts = {}, {}
    for one in answered:
        letter, key = (
            letter_of(one.prediction, options_of(one.question)),
            str(one.question.question_id),
        )
        places[key] = -1 if letter is None else LETTERS.index(letter)
        texts[key] = one.prediction
    return {"results": places, "outputs": texts}


def _from_places(path: Path, places: Any, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Rows of ScienceQA's `results`."""
    if not isinstance(places, dict):
        raise UsageError(f"predictions = {path}: results = {places!r} is no table by problem")
    known = {str(question.question_id): question.question_id for question in questions}
    rows = []
    for key, place in places.items():
        if not isinstance(place, int) or isinstance(place, bool) or not -1 <= place < len(LETTERS):
            raise UsageError(
                f"predictions = {path}: the answer to {key} is {place!r}; write the place of an "
                "option from 0, or -1"
            )
        answer = "" if place < 0 else LETTERS[place]
        rows.append({"question_id": known.get(key, key), "answer": answer})
    return rows


def read_predictions(path: Path, questions: Sequence[Question]) -> list[Said]:
    """The questions that a file answers, each with its answer, in their order.

    Every question must be answered once. GQA's published evaluation needs balanced questions alone:
    a file that answers them and no other is taken as well.

    Args:
        path: JSON, `[{image, answer}]` of VizWiz, `[{questionId, prediction}]` of GQA and
            `[{question_id, answer}]` of other sets; or such a row a line; or ScienceQA's
            `{"results": {problem: place}}`.
        questions: those of the set.

    Raises:
        UsageError: it cannot be read, is of another form or set, or an id is missing, unknown or
            there twice.
    """
    form = one_form(questions)
    content = read_json_file(path, "predictions")
    if form == "scienceqa" and isinstance(content, dict) and "results" in content:
        content = _from_places(path, content["results"], questions)
    said = _said(path, content, form)
    known = {question.question_id for question in questions}
    if unknown := [number for number in said if number not in known]:
        raise UsageError(
            f"predictions = {path}: {len(unknown)} of {len(said)} answer no question of this file, "
            f"the first is {_named(form, unknown[0])}{other_type(unknown[0], known)}; name the "
            "questions of the same split, or leave such answers out"
        )
    missing = [question for question in questions if question.question_id not in said]
    if missing and not _answers_balanced_alone(form, questions, missing):
        raise UsageError(
            f"predictions = {path}: {len(missing)} of {len(questions)} questions have no answer, "
            f"the first is {_named(form, missing[0].question_id)}; official evaluations want an "
            "answer to each"
        )
    return [
        Said(question=one, prediction=said[one.question_id])
        for one in questions
        if one.question_id in said
    ]


def _said(path: Path, content: Any, form: Form) -> dict[Any, str]:
    """The answers by the id that they name."""
    id_name, answer_name = FIELDS[form]
    wanted = f'{_SETS[form]} form, [{{"{id_name}": ..., "{answer_name}": ...}}, ...]'
    if not isinstance(content, list):
        raise UsageError(f"predictions = {path} is no list; write it in {wanted}")
    said: dict[Any, str] = {}
    for number, row in enumerate(content):
        row = _renamed(row) if form in _LLAVA else row
        if not isinstance(row, dict) or not {id_name, answer_name} <= row.keys():
            raise UsageError(f"predictions = {path}: {_wrong_row(row, number, form, wanted)}")
        question_id, answer = row[id_name], row[answer_name]
        if not isinstance(question_id, int | str) or isinstance(question_id, bool):
            raise UsageError(f"predictions = {path}: {id_name} = {question_id!r} names no question")
        if not isinstance(answer, str):
            raise UsageError(
                f"predictions = {path}: the answer to {_named(form, question_id)} is {answer!r}, "
                "no text; write it as a string"
            )
        if question_id in said:
            raise UsageError(
                f"predictions = {path}: {_named(form, question_id)} is answered twice "
                f"({said[question_id]!r} and {answer!r}); keep one"
            )
        said[question_id] = answer
    return said


def _renamed(row: Any) -> Any:
    """LLaVA's row of an answer as others have it, a question as one that answers nothing."""
    if not isinstance(row, dict):
        return row
    if not _ASKING.isdisjoint(row):
        return {name: value for name, value in row.items() if name != "answer"}
    return row if "answer" in row or "text" not in row else row | {"answer": row["text"]}


def _wrong_row(row: Any, number: int, form: Form, wanted: str) -> str:
    """What a row without the two fields is."""
    keys = row.keys() if isinstance(row, dict) else set()
    if keys & _ASKING - {"image"}:
        return f"row {number} is a question or an annotation, no answer; write it in {wanted}"
    # VizWiz's and VQAv2's rows share a name: the id's tells them apart.
    for other, (id_name, _) in FIELDS.items():
        if other != form and id_name in keys:
            return (
                f"it is in {_SETS[other]} form and the questions are in {_SETS[form]}; name files "
                f"of one set, or write it in {wanted}"
            )
    has = f"has {', '.join(keys) or 'nothing'}" if isinstance(row, dict) else "is no object"
    return f"row {number} {has}; write it in {wanted}"


def _named(form: Form, question_id: Any) -> str:
    return f"{FIELDS[form][0]} {question_id!r}"


def _answers_balanced_alone(
    form: Form, questions: Sequence[Question], missing: Sequence[Question]
) -> bool:
    others = [question for question in questions if question.extra.get("isBalanced") is False]
    return form == "gqa" and list(missing) == others
