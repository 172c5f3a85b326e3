"""What the readers of all sets share: rows of questions, and what is told of one that is none.

A row that is no question goes to `on_fault`, which refuses the file (`refuse`) or counts the row.
"""

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from mmtrain.data.questions.question import Question
from mmtrain.errors import UsageError

Rows = list[tuple[str, Question]]
"""The image's id and a question about it."""

OnFault = Callable[[str, UsageError], None]
"""Is told why a row cannot be used, in few words and in a line that names it."""

KNOWN_SETS = (
    "VQAv2, OK-VQA, TextVQA, VizWiz, GQA, POPE, ScienceQA, easy-VQA, or a table of multiple choice"
)

MALFORMED = "malformed row"
NO_ANSWER = "no answer"
TWICE = "there twice"


def refuse(_reason: str, error: UsageError) -> None:
    """What is told of a row that cannot be used, where all must be."""
    raise error


def unknown_form(path: Path) -> UsageError:
    """Says which forms there are."""
    return UsageError(f"questions = {path} is of no known form; name a file of {KNOWN_SETS}")


def by_question(rows: list[Any], told: str, on_fault: OnFault) -> dict[Any, dict[str, Any]]:
    """Rows by their `question_id`, in the order of the file."""
    found: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        question_id = row.get("question_id") if isinstance(row, dict) else None
        if not isinstance(question_id, int | str) or isinstance(question_id, bool):
            what = (
                "is without 'question_id'"
                if question_id is None
                else f"has question_id = {question_id!r}, which is no whole number and no text"
            )
            error = UsageError(f"{told}: row {number} {what}; fetch the file again")
            on_fault(MALFORMED, error)
        elif question_id in found:
            on_fault(TWICE, there_twice(told, f"question_id {question_id}"))
        else:
            found[question_id] = row
    return found


def other_type(question_id: Any, known: Container[Any], where: str = "the questions have") -> str:
    """A hint where a number stands for its digits, or the other way round; empty where not."""
    swapped = str(question_id) if isinstance(question_id, int) else _as_number(question_id)
    if swapped not in known:
        return ""
    kinds = ("a number", "text") if isinstance(question_id, int) else ("text", "a number")
    return f" ({kinds[0]}, where {where} {kinds[1]})"


def _as_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() else None


def there_twice(told: str, what: str) -> UsageError:
    """What is told of an id that a file has twice."""
    return UsageError(
        f"{told}: {what} is there twice, as where two splits were joined; name the file of one "
        "split"
    )


def text_of(row: dict[str, Any], name: str, told: str) -> str:
    """A field that must be a text.

    Args:
        row: one of a file.
        name: the field.
        told: file and row, for messages.

    Raises:
        UsageError: it is missing, or something else.
    """
    value = row.get(name)
    if not isinstance(value, str):
        what = f"{name} = {value!r} is no text" if name in row else f"without {name!r}"
        raise UsageError(f"{told}: {what}; fetch the file again")
    return value


def kind_of(row: dict[str, Any], name: str, told: str) -> str:
    """A field that says of which kind a question is; empty where it is missing or null.

    Raises:
        UsageError: it is no text, which figures by kind could not be told under.
    """
    return "" if row.get(name) is None else text_of(row, name, told)


def image_id_of(row: dict[str, Any], name: str, told: str) -> str:
    """A field that names an image by text or number.

    Raises:
        UsageError: it is missing, or something else.
    """
    value = row.get(name)
    if not isinstance(value, int | str) or isinstance(value, bool):
        what = f"{name} = {value!r} names no image" if name in row else f"without {name!r}"
        raise UsageError(f"{told}: {what}; fetch the file again")
    return str(value)


class NoAnswersError(UsageError):
    """A question of a set that has answers to the others."""


def no_answers(told: str) -> UsageError:
    """What is told of a question without answers in a file that has some."""
    return NoAnswersError(f"{told} has no answers; mend or leave it out")


def table_of(row: dict[str, Any], name: str, told: str) -> dict[str, Any]:
    """A field that is a table; empty where it is not there.

    Raises:
        UsageError: it is something else.
    """
    value = row.get(name) or {}
    if not isinstance(value, dict):
        raise UsageError(f"{told}: {name} = {value!r} is no table; fetch the file again")
    return value
