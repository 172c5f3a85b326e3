"""ScienceQA's files: `problems.json`, and `pid_splits.json` beside it.

Lu et al. 2022, arXiv:2209.09513. A third of the questions and more have no image.
"""

from pathlib import Path
from typing import Any

from mmtrain.data.questions.json_file import read_json_file
from mmtrain.data.questions.options import no_image_id, options_question, place_of, texts_of
from mmtrain.data.questions.question import Question
from mmtrain.data.questions.rows import MALFORMED, OnFault, Rows, text_of
from mmtrain.errors import UsageError

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
_SPLITS = "pid_splits.json"


def is_science_qa(content: Any) -> bool:
    """Whether a file's content may be ScienceQA's problems."""
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, dict) and {"question", "choices"} <= first.keys()


def science_qa_rows(
    content: dict[str, Any], path: Path, split: str | None, on_fault: OnFault
) -> Rows:
    """The problems of a split.

    Args:
        content: of problems.json.
        path: where it is; pid_splits.json is looked for beside it.
        split: its name; without pid_splits.json, what the problems' `split` says.
        on_fault: as for every set.

    Raises:
        UsageError: no split is named, there is none of that name, or the two files differ.
    """
    beside = path.with_name(_SPLITS)
    splits = _from_file(beside) if beside.is_file() else _from_rows(content)
    if split is None or split not in splits:
        named = f"{path}:{split}: no such split" if split else f"{path}: it has several splits"
        choices = " or ".join(f"{path}:{name}" for name in sorted(splits)) or "another file"
        raise UsageError(f"questions = {named}; name {choices}")
    told = f"questions = {path}:{split}"
    if missing := [pid for pid in splits[split] if pid not in content]:
        raise UsageError(
            f"{told}: {len(missing)} of {len(splits[split])} problems of {_SPLITS} are not in "
            f"{path.name}, the first is {missing[0]}; fetch both again"
        )
    rows: Rows = []
    for pid in dict.fromkeys(splits[split]):
        try:
            rows.append(problem(content[pid], pid, f"questions = {path}: problem {pid}", split))
        except UsageError as error:
            on_fault(MALFORMED, error)
    return rows


def _from_file(path: Path) -> dict[str, list[str]]:
    content = read_json_file(path, "questions")
    lists = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(pids, list) and all(isinstance(p, str) for p in pids) for pids in lists):
        raise UsageError(f"questions: {path} is no table of lists of problems; fetch it again")
    return content


def _from_rows(content: dict[str, Any]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for pid, row in content.items():
        name = row.get("split") if isinstance(row, dict) else None
        if isinstance(name, str):
            splits.setdefault(name, []).append(pid)
    return splits


def problem(row: Any, question_id: int | str, told: str, split: str = "") -> tuple[str, Question]:
    """A row, of the file or of the set's tables -> its image's place below `images/` and the
    question.

    Args:
        row: as published.
        question_id: its key.
        told: file and row, for messages.
        split: the folder of its image, where the row does not say its `split`.

    Raises:
        UsageError: it is malformed.
    """
    if not isinstance(row, dict):
        raise UsageError(f"{told} is {row!r}, no table; fetch the file again")
    options = texts_of(row.get("choices"), "choices", told)
    hint = text_of(row, "hint", told) if row.get("hint") else ""
    image = text_of(row, "image", told) if row.get("image") else None
    contexts = [name for name, has in (("TXT", hint), ("IMG", image)) if has]
    asked = text_of(row, "question", told)
    question = options_question(
        question_id,
        form="scienceqa",
        asked=f"Context: {hint}\n{asked}" if hint else asked,
        options=options,
        answer=place_of(row["answer"], options, told) if "answer" in row else None,
        question_type=text_of(row, "topic", told) if row.get("topic") else "",
        extra={
            "subject": _subject(row, told),
            "grade": _grade(row, told),
            "context": contexts or ["NO"],
        },
        has_image=image is not None,
    )
    if image is None:
        return no_image_id(question_id), question
    folder = row.get("split", split)
    return f"{folder}/{question_id}/{image}", question


def _subject(row: dict[str, Any], told: str) -> str:
    subject = row.get("subject")
    if not isinstance(subject, str) or subject not in SUBJECTS:
        known = ", ".join(SUBJECTS)
        raise UsageError(f"{told}: subject = {subject!r} is none of {known}; fetch the file again")
    return SUBJECTS[subject]


def _grade(row: dict[str, Any], told: str) -> str:
    """`G1-6` or `G7-12`, as the published figures have them."""
    grade = str(row.get("grade", "")).removeprefix("grade")
    if not grade.isascii() or not grade.isdecimal() or not 1 <= int(grade) <= 12:
        given = row.get("grade")
        raise UsageError(
            f"{told}: grade = {given!r} is none of grade1 to grade12; fetch the file again"
        )
    return "G1-6" if int(grade) <= 6 else "G7-12"
