"""POPE's files: a line for each question whether something is in an image."""

import re
from pathlib import Path
from typing import Any

from mmtrain.data.questions.question import Question
from mmtrain.data.questions.rows import MALFORMED, OnFault, Rows, by_question, kind_of, text_of
from mmtrain.errors import UsageError

_CATEGORY = re.compile(r"pope_(random|popular|adversarial)(?![a-z])")
"""In the names of its files, which are of one category each."""


def is_pope(row: Any) -> bool:
    """Whether a file of such rows may be POPE's."""
    return isinstance(row, dict) and {"image", "text"} <= row.keys() and "question" not in row


def pope_rows(content: list[Any], path: Path, on_fault: OnFault) -> Rows:
    """POPE's questions; their category from the rows, as in joined files, or the file's name."""
    named = _CATEGORY.search(path.name)
    rows: Rows = []
    for row in by_question(content, f"questions = {path}", on_fault).values():
        try:
            rows.append(_row(row, path, named[1] if named else ""))
        except UsageError as error:
            on_fault(MALFORMED, error)
    return rows


def _row(row: dict[str, Any], path: Path, category: str) -> tuple[str, Question]:
    told = f"questions = {path}: question_id {row['question_id']}"
    label = row.get("label")
    if "label" in row and label not in ("yes", "no"):
        raise UsageError(f"{told}: label = {label!r} is neither yes nor no; fetch the file again")
    question = Question(
        question_id=row["question_id"],
        question=text_of(row, "text", told),
        answers=() if label is None else (label,),
        question_type=kind_of(row, "category", told) or category,
        extra={"form": "pope"},
    )
    return text_of(row, "image", told), question
