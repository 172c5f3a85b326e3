"""Multiple choice in tables: JSON lines with the images beside them, or Parquet with them inside.

MMStar's and MMMU's form, and whatever has a question, options, an answer's letter and one image.
"""

import ast
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtrain.data.images.decode import may_be_image
from mmtrain.data.questions.letters import LETTERS
from mmtrain.data.questions.options import no_image_id, options_question, place_of, texts_of
from mmtrain.data.questions.question import Question
from mmtrain.data.questions.rows import MALFORMED, TWICE, OnFault, Rows, text_of, there_twice
from mmtrain.data.questions.science_qa import problem
from mmtrain.errors import UsageError

_IDS = ("question_id", "id", "index")
_KINDS = ("category", "subfield", "subject")
_IMAGE = re.compile(r"image(_\d+)?")
_TEXTS = {"question", "hint", "options", "choices", "answer", *LETTERS}
_UNNUMBERED = "<image>"
_PLACEHOLDER = re.compile(r"<image(?: \d+)?>")
# MMStar writes them into the question: "... Options: A: left, B: right".
_IN_TEXT = re.compile(r"\s*(?:Options|Choices):\s*(?=\(?A[:.)])")


def is_choice(row: Any) -> bool:
    """Whether a table of such rows may be one of multiple choice."""
    return (
        isinstance(row, dict)
        and "question" in row
        and ("answer" in row or "choices" in row)
        and bool({"options", "choices", *LETTERS[:2]} & row.keys() or _has_options(row))
    )


def _has_options(row: dict[str, Any]) -> bool:
    return isinstance(row["question"], str) and _IN_TEXT.search(row["question"]) is not None


def image_columns(names: list[str]) -> list[str]:
    """Those of a table's columns that hold images, in order."""
    return [name for name in names if _IMAGE.fullmatch(name)]


def choice_rows(content: list[Any], path: Path, on_fault: OnFault) -> Rows:
    """Rows of multiple choice; an image is the path that a row names, from the images' folder."""
    rows: Rows = []
    seen: set[int | str] = set()
    for number, row in enumerate(content):
        try:
            image, question = _row(row, number, path)
        except UsageError as error:
            on_fault(MALFORMED, error)
            continue
        if question.question_id in seen:
            told = f"question_id {question.question_id}"
            on_fault(TWICE, there_twice(f"questions = {path}", told))
            continue
        seen.add(question.question_id)
        rows.append((image, question))
    return rows


def _row(row: Any, number: int, path: Path) -> tuple[str, Question]:
    if not isinstance(row, dict):
        raise UsageError(f"questions = {path}: row {number} is no table; fetch the file again")
    question_id = next((row[name] for name in _IDS if name in row), number)
    if not isinstance(question_id, int | str) or isinstance(question_id, bool):
        raise UsageError(f"questions = {path}: row {number}: {question_id!r} is no id")
    told = f"questions = {path}: question_id {question_id}"
    image = _only_image(row, told)
    if "choices" in row and "options" not in row and {"subject", "grade"} <= row.keys():
        # ScienceQA as tables have it: the images are theirs, not folders below images/.
        _, question = problem(row | {"image": image}, question_id, told)
        return image or no_image_id(question_id), question
    if row.get("question_type") not in (None, "multiple-choice"):
        raise UsageError(
            f"{told}: question_type = {row['question_type']!r} has no options; leave such rows out"
        )
    asked, options = _options(row, text_of(row, "question", told), told)
    _refuse_more_images((asked, *options), 0 if image is None else 1, told)
    kind = next((row[name] for name in _KINDS if isinstance(row.get(name), str)), "")
    further = row.get("l2_category")
    question = options_question(
        question_id,
        form="choice",
        asked=_PLACEHOLDER.sub("", asked).strip(),
        options=options,
        answer=_answer(row, options, told),
        question_type=kind,
        answer_type=further if isinstance(further, str) else "",
        extra={},
        has_image=image is not None,
    )
    return image or no_image_id(question_id), question


def _answer(row: dict[str, Any], options: list[str], told: str) -> int | None:
    """MMMU's test set has `?` where others have the letter."""
    given = row.get("answer")
    return None if given in (None, "?") else place_of(given, options, told)


def _only_image(row: dict[str, Any], told: str) -> str | None:
    names = [name for name in image_columns([*row]) if row[name] not in (None, "")]
    if len(names) > 1:
        raise UsageError(
            f"{told} has {len(names)} images ({', '.join(names)}), and a question is about one; "
            "leave such rows out"
        )
    if not names:
        _refuse_other_column(row, told)
    return text_of(row, names[0], told) if names else None


def _refuse_other_column(row: dict[str, Any], told: str) -> None:
    """A row without an image is asked without one: none may be elsewhere in it."""
    for name, value in row.items():
        if name not in _TEXTS and may_be_image(value):
            raise UsageError(
                f"{told}: the image in {name} is not read; write it as the row's image, alone"
            )


def _refuse_more_images(texts: Sequence[str], num_images: int, told: str) -> None:
    """As many images may be named as there are: `<image 1>` is one however often, and every
    `<image>` another one, as in dialogues."""
    places = [place for text in texts for place in _PLACEHOLDER.findall(text)]
    named = {place for place in places if place != _UNNUMBERED}
    if (count := len(named) + places.count(_UNNUMBERED)) <= num_images:
        return
    shown = [*dict.fromkeys(one for one in places if one in named)]
    shown += [_UNNUMBERED] * places.count(_UNNUMBERED)
    remedy = "name it as image, or "
    if num_images:
        remedy = "" if named else "write <image 1> wherever that one is meant, or "
    raise UsageError(
        f"{told} speaks of {count} image{'' if count == 1 else 's'} ({', '.join(shown)}) and has "
        f"{num_images}; {remedy}leave such rows out"
    )


def _options(row: dict[str, Any], asked: str, told: str) -> tuple[str, list[str]]:
    """The question without its options, and these: of a list, of columns A, B ..., or of the
    question's own end."""
    for name in ("options", "choices"):
        if name in row:
            return asked, texts_of(_listed(row[name]), name, told)
    if "A" in row:
        count = next((n for n, one in enumerate(LETTERS) if row.get(one) in (None, "")), 26)
        if later := [one for one in LETTERS[count:] if row.get(one) not in (None, "")]:
            raise UsageError(f"{told}: option {later[0]} follows no {LETTERS[count]}")
        return asked, texts_of([row[one] for one in LETTERS[:count]], "A, B, ...", told)
    found = _IN_TEXT.search(asked)
    if found is None:
        raise UsageError(f"{told} has no options (options, choices, or A, B, ...)")
    return asked[: found.start()], texts_of(_written(asked[found.end() :]), "question", told)


def _listed(value: Any) -> Any:
    """MMMU keeps a list as Python would print it."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _written(text: str) -> list[str]:
    """`A: left, B: right` -> left and right: every letter in its turn begins an option."""
    options: list[str] = []
    rest = text
    for letter, then in itertools.pairwise(LETTERS):
        begin = re.match(rf"\s*\(?{letter}[:.)]\s*", rest)
        if begin is None:
            break
        rest = rest[begin.end() :]
        end = re.search(rf"[,;\n]?\s+(?=\(?{then}[:.)])", rest)
        options.append((rest if end is None else rest[: end.start()]).strip())
        rest = "" if end is None else rest[end.end() :]
    return options
