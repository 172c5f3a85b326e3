"""Questions about images, from the files of VQAv2, VizWiz, GQA and easy-VQA as they are."""

import importlib.util
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmtrain.data.randomness import uniform
from mmtrain.data.vqa_images import ImageFolder, coco_split
from mmtrain.errors import UsageError

EASY_VQA = "easy_vqa:"
EASY_VQA_PARTS = ("train", "val", "trainval", "test")
_EASY_VAL = 0.05
"""Share of easy-VQA's training images that `val` takes; `train` is the rest."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about an image."""

    question_id: int | str
    """Unique in its set; result files name it."""
    question: str
    """As it was asked."""
    answers: tuple[str, ...] = ()
    """Every annotator's answer (VQAv2 and VizWiz have ten); empty where the set has none."""
    question_type: str = ""
    """Such as `how many`; empty where the set tells none."""
    answer_type: str = ""
    """Such as `yes/no`; empty where the set tells none."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What only one set has, such as GQA's `entailed`."""

    def to_json(self) -> dict[str, Any]:
        """As a shard's .json holds it; what is empty is left out."""
        fields = asdict(self) | {"answers": list(self.answers)}
        return {name: value for name, value in fields.items() if value not in ("", [], {})}


@dataclass(frozen=True, kw_only=True)
class QuestionedImage:
    """An image and all that is asked about it."""

    path: Path
    """The image's file."""
    image_id: str
    """As the set names it."""
    questions: tuple[Question, ...]
    """In the order of the file."""


def questions_from_json(fields: dict[str, Any]) -> tuple[Question, ...]:
    """The questions in a sample's .json, as `Question.to_json` wrote them.

    Raises:
        ValueError: there are none, or one is not of this form.
    """
    rows = fields.get("questions")
    if not isinstance(rows, list) or not rows:
        raise ValueError("no questions")
    try:
        return tuple(Question(**{**row, "answers": tuple(row.get("answers", ()))}) for row in rows)
    except (TypeError, AttributeError) as error:
        raise ValueError("questions malformed") from error


def read_questions(
    images: str, questions: str | None, annotations: str | None, *, key: str = "data.train"
) -> list[QuestionedImage]:
    """A set of questions from its own files, in the order of the images' ids.

    What the files are is told from their content: VQAv2's two (questions and annotations), VizWiz's
    list, GQA's table, or easy-VQA's triples.

    Args:
        images: the folder of images; or `easy_vqa:train`, `:val`, `:trainval` or `:test`, the data
            in the package easy-vqa, whose `val` is cut from its training images.
        questions: the file of questions.
        annotations: VQAv2's answers.
        key: the setting that `images` came from, for messages.

    Raises:
        UsageError: a file is missing or of no known form, an annotation or an image is missing,
            two files may be one image, or the annotations are of other questions.
    """
    if images.startswith(EASY_VQA):
        return _read_easy_vqa(images)
    assert questions is not None, "the caller looked"
    path, split = Path(questions), None
    content = _read_json(path, "questions")
    if isinstance(content, dict) and isinstance(content.get("questions"), list):
        rows = _vqa_v2(content["questions"], annotations, path)
        split = coco_split(content.get("data_subtype"))
    elif annotations is not None:
        raise UsageError(
            f"annotations = {annotations}: only VQAv2 has such a file beside its questions, and "
            f"{path} is none of its; leave it out"
        )
    elif isinstance(content, dict):
        rows = _gqa(content, path)
    elif isinstance(content, list) and content and isinstance(content[0], list):
        rows = _easy_vqa(content)
    elif isinstance(content, list):
        rows = _vizwiz(content, path)
    else:
        raise _unknown_form(path)
    return _with_images(rows, ImageFolder(Path(images), split=split, key=key))


def _read_json(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{key} = {path}: {error.strerror}; name a file that exists") from error
    except ValueError as error:
        raise UsageError(f"{key} = {path} is no JSON ({error}); fetch it again") from error


def _unknown_form(path: Path) -> UsageError:
    return UsageError(
        f"questions = {path} is of no known form; name a file of VQAv2, VizWiz, GQA or easy-VQA"
    )


Rows = Iterable[tuple[str, Question]]
"""The image's id and a question about it."""


def _vqa_v2(questions: list[Any], annotations: str | None, path: Path) -> Rows:
    asked = _by_question(questions, f"questions = {path}")
    answers = None if annotations is None else _annotations(annotations, asked, path)
    rows = []
    for question_id, row in asked.items():
        try:
            image_id, text = row["image_id"], row["question"]
        except KeyError as error:
            raise UsageError(
                f"questions = {path}: a question without {error}; fetch the file again"
            ) from error
        known = {} if answers is None else answers[question_id]
        given = _given(known, f"annotations = {annotations}: question_id {question_id}")
        if answers is not None and not given:
            raise _no_answers(annotations, question_id)
        question = Question(
            question_id=question_id,
            question=text,
            answers=given,
            question_type=known.get("question_type", ""),
            answer_type=known.get("answer_type", ""),
        )
        rows.append((str(image_id), question))
    return rows


def _by_question(rows: list[Any], told: str) -> dict[Any, dict[str, Any]]:
    """VQAv2's rows by their question's id, in the order of the file."""
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("question_id"), int | str):
            raise UsageError(f"{told}: a row without 'question_id'; fetch the file again")
        if row["question_id"] in found:
            raise UsageError(
                f"{told}: question_id {row['question_id']} is there twice, as where two splits "
                "were joined; name the file of one split"
            )
        found[row["question_id"]] = row
    return found


def _annotations(file: str, asked: dict[Any, dict[str, Any]], path: Path) -> dict[Any, Any]:
    """The annotation of each question that is asked, of the same image."""
    content = _read_json(Path(file), "annotations")
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise UsageError(f"annotations = {file} has no list of annotations")
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
        return tuple(one["answer"] for one in row.get("answers", ()))
    except (TypeError, KeyError) as error:
        raise UsageError(
            f'{told} has answers of another form than {{"answer": ...}}; fetch the file again'
        ) from error


def _no_answers(file: object, question_id: object) -> UsageError:
    return UsageError(
        f"annotations = {file}: question_id {question_id} has no answers; mend or leave it out"
    )


def _vizwiz(content: list[Any], path: Path) -> Rows:
    rows = []
    for row in content:
        if not isinstance(row, dict) or "image" not in row or "question" not in row:
            raise _unknown_form(path)
        given = _given(row, f"questions = {path}: {row['image']}")
        if "answers" in row and not given:
            raise _no_answers(path, row["image"])
        question = Question(
            # VizWiz has no ids: one question an image, named by the image.
            question_id=row["image"],
            question=row["question"],
            answers=given,
            answer_type=row.get("answer_type", ""),
            extra={"answerable": row["answerable"]} if "answerable" in row else {},
        )
        rows.append((row["image"], question))
    return rows


_GQA_EXTRA = ("isBalanced", "entailed", "equivalent", "groups", "types")


def _gqa(content: dict[str, Any], path: Path) -> Rows:
    rows = []
    for question_id, row in content.items():
        if not isinstance(row, dict) or "imageId" not in row or "question" not in row:
            raise _unknown_form(path)
        types = row.get("types") or {}
        question = Question(
            question_id=question_id,
            question=row["question"],
            answers=(row["answer"],) if "answer" in row else (),
            question_type=types.get("structural", ""),
            answer_type=types.get("semantic", ""),
            extra={name: row[name] for name in _GQA_EXTRA if name in row},
        )
        rows.append((str(row["imageId"]), question))
    return rows


def _easy_vqa(content: list[Any]) -> Rows:
    return [
        (
            str(image_id),
            Question(
                question_id=number,
                question=text,
                answers=(answer,),
                answer_type="yes/no" if answer in ("yes", "no") else "other",
            ),
        )
        for number, (text, answer, image_id) in enumerate(content)
    ]


def _read_easy_vqa(spec: str) -> list[QuestionedImage]:
    part = spec.removeprefix(EASY_VQA)
    if part not in EASY_VQA_PARTS:
        raise UsageError(f"{spec}: {part!r} is unknown; use {', '.join(EASY_VQA_PARTS)}")
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise UsageError(f"{spec} needs the package easy-vqa; run: pip install 'mmtrain[vqa]'")
    folder = Path(found.origin).parent / "data" / ("test" if part == "test" else "train")
    rows = _easy_vqa(_read_json(folder / "questions.json", "questions"))
    images = _with_images(rows, ImageFolder(folder / "images"))
    if part in ("train", "val"):
        numbers = [int(image.image_id) for image in images]
        draws = uniform(seed=0, epoch=0, position_B=numbers, purpose="easy-vqa val", num=1)
        in_val = (draws[:, 0] < _EASY_VAL).tolist()
        images = [
            one for one, is_val in zip(images, in_val, strict=True) if is_val == (part == "val")
        ]
    return images


def _with_images(rows: Rows, folder: ImageFolder) -> list[QuestionedImage]:
    """Questions grouped by image, each with its file."""
    grouped: dict[str, list[Question]] = {}
    for image_id, question in rows:
        grouped.setdefault(image_id, []).append(question)
    if not grouped:
        raise UsageError(
            f"questions about the images in {folder.folder}: the file has none; name another"
        )
    files = {image_id: folder.find(image_id) for image_id in grouped}
    if missing := [image_id for image_id, file in files.items() if file is None]:
        first = missing[0]
        raise UsageError(
            f"{folder.key} = {folder.folder}: {len(missing)} of {len(grouped)} images are not "
            f"there, the first is {first}, of question_id {grouped[first][0].question_id} "
            f"({folder.why_missing(first)}); fetch them or name another folder"
        )
    return [
        QuestionedImage(path=file, image_id=image_id, questions=tuple(grouped[image_id]))
        for image_id, file in sorted(files.items(), key=lambda pair: _order(pair[0]))
        if file is not None
    ]


def _order(image_id: str) -> tuple[int, str]:
    return (int(image_id), "") if image_id.isdecimal() else (-1, image_id)
