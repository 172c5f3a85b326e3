"""The files of questions and answers that sets publish, as they are.

Nothing here needs torch, so that a file of answers is judged without waiting for it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtrain.data.questions.choice_table import choice_rows, is_choice
from mmtrain.data.questions.json_file import read_json_file
from mmtrain.data.questions.parquet_table import SUFFIX, parquet_files, table_rows
from mmtrain.data.questions.pope import is_pope, pope_rows
from mmtrain.data.questions.rows import OnFault, Rows, refuse, unknown_form
from mmtrain.data.questions.science_qa import is_science_qa, science_qa_rows
from mmtrain.data.questions.sets import easy_vqa_rows, gqa_rows, vizwiz_rows, vqa_v2_rows
from mmtrain.data.questions.text_vqa import text_vqa_rows
from mmtrain.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class QuestionFile:
    """What one file asks."""

    rows: Rows
    """In the order of the file."""
    subtype: object = None
    """VQAv2's `data_subtype`, such as `val2014`."""


def read_question_file(
    questions: str, annotations: str | None, *, on_fault: OnFault = refuse
) -> QuestionFile:
    """The questions of a file with their answers; what form it has is told from its content.

    Args:
        questions: the questions of VQAv2 or OK-VQA, or the one file of another set.
        annotations: VQAv2's or OK-VQA's answers.
        on_fault: what is told of a row that cannot be used; it refuses the file, or returns.

    Raises:
        UsageError: a file is missing, of no known form, another one than its name says, or the two
            are not of the same questions.
    """
    path, split = named_split(questions)
    if path.suffix == SUFFIX:
        return QuestionFile(rows=_of_parquet(questions, annotations, on_fault))
    content = read_json_file(path, "questions")
    asked = content.get("questions") if isinstance(content, dict) else None
    if content in ({}, []) or asked == [] or _is_empty(content):
        raise UsageError(f"questions = {path} holds no question; name another file")
    if split is not None and not is_science_qa(content):
        raise UsageError(f"questions = {questions}: {path} is no file of splits; name it without")
    if isinstance(asked, list):
        rows = vqa_v2_rows(asked, annotations, path, on_fault)
        return QuestionFile(rows=rows, subtype=content.get("data_subtype"))
    return QuestionFile(rows=_others(content, annotations, path, split, on_fault))


def named_split(questions: str) -> tuple[Path, str | None]:
    """`problems.json:test` -> the file and ScienceQA's split; None where none is named."""
    file, colon, split = questions.rpartition(":")
    if not colon or Path(questions).is_file() or not Path(file).is_file():
        return Path(questions), None
    return Path(file), split


def _of_parquet(questions: str, annotations: str | None, on_fault: OnFault) -> Rows:
    if annotations is not None:
        raise UsageError(
            f"annotations = {annotations}: {questions} brings its answers; leave it out"
        )
    rows = table_rows(parquet_files(questions, "questions"), "questions")
    if not rows:
        raise UsageError(f"questions = {questions} holds no question; name another file")
    if not any(map(is_choice, rows)):
        raise unknown_form(Path(questions))
    return choice_rows(rows, Path(questions), on_fault)


def _is_empty(content: Any) -> bool:
    """A file of TextVQA, of none."""
    return isinstance(content, dict) and content.get("data") == []


def _others(
    content: Any, annotations: str | None, path: Path, split: str | None, on_fault: OnFault
) -> Rows:
    """The rows of a set that keeps questions and answers in one file."""
    if other := what_it_is(content):
        given = f" (and annotations = {annotations})" if annotations is not None else ""
        swapped = " the two are swapped:" if other.is_annotations and given else ""
        raise UsageError(f"questions = {path}{given}:{swapped} this file {other.told}")
    if annotations is not None:
        raise UsageError(
            f"annotations = {annotations}: only VQAv2 and OK-VQA have such a file beside their "
            f"questions, and {path} is none of theirs; leave it out"
        )
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        return text_vqa_rows(content["data"], path, on_fault)
    if is_science_qa(content):
        return science_qa_rows(content, path, split, on_fault)
    if isinstance(content, dict):
        return gqa_rows(content, path, on_fault)
    if not isinstance(content, list):
        raise unknown_form(path)
    first = next((row for row in content if isinstance(row, list | dict)), None)
    if is_pope(first):
        return pope_rows(content, path, on_fault)
    if is_choice(first):
        return choice_rows(content, path, on_fault)
    read = easy_vqa_rows if isinstance(first, list) else vizwiz_rows
    return read(content, path, on_fault)


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
            return OtherFile(
                told="holds COCO's captions or objects, for which there are no figures (CIDEr "
                "needs a tokenizer that runs in Java); name a file of questions"
            )
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
        said = {"answer", "prediction", "answers", "answer_id"}
        if "question" not in keys and keys & said:
            return OtherFile(
                told="holds answers without questions (`mmtrain eval answers --predictions` judges "
                "such a file); name the questions that they answer"
            )
    return None
