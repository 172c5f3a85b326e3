"""Questions with lettered options: how they are asked, and which letters there are."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmtrain.data.questions.letters import LETTERS
from mmtrain.data.questions.question import Form, Question
from mmtrain.errors import UsageError

INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""As LLaVA asks."""


def options_question(
    question_id: int | str,
    *,
    form: Form,
    asked: str,
    options: Sequence[str],
    answer: int | None,
    question_type: str = "",
    answer_type: str = "",
    extra: Mapping[str, Any],
    has_image: bool,
) -> Question:
    """A question whose answer is a letter.

    Args:
        question_id: unique in the set.
        form: the set's.
        asked: without the options; they and the instruction are added.
        options: what the letters from A on stand for; a text with none of its own, `""`.
        answer: which is right, from 0; None: the set does not say.
        question_type: as Question has it.
        answer_type: as Question has it.
        extra: what only the set has.
        has_image: whether it is about one.
    """
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False) if text]
    return Question(
        question_id=question_id,
        question="\n".join([asked, *lines, INSTRUCTION]),
        answers=() if answer is None else (LETTERS[answer],),
        question_type=question_type,
        answer_type=answer_type,
        extra={"form": form, "options": list(options), **extra}
        | ({} if has_image else {"no_image": True}),
    )


def no_image_id(question_id: int | str) -> str:
    """What stands for the image's id of a question that has none."""
    return f"question {question_id}"


def options_of(question: Question) -> list[str]:
    """What the letters from A on stand for; empty where the question has no options."""
    return question.extra.get("options", [])


def texts_of(value: Any, name: str, told: str) -> list[str]:
    """A list of options.

    Raises:
        UsageError: it is none, or there are fewer than two or more than letters.
    """
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UsageError(f"{told}: {name} = {value!r} is no list of texts; fetch the file again")
    if not 2 <= len(value) <= len(LETTERS):
        raise UsageError(
            f"{told}: {name} has {len(value)} options; between 2 and {len(LETTERS)} have letters"
        )
    return value


def place_of(value: Any, options: Sequence[str], told: str) -> int:
    """Which option an answer names: by its place from 0, or its letter.

    Raises:
        UsageError: none.
    """
    place = LETTERS.find(value) if isinstance(value, str) and len(value) == 1 else value
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(options):
        raise UsageError(
            f"{told}: answer = {value!r} is none of its {len(options)} options; fetch the file "
            "again"
        )
    return place
