"""A set's questions, each with the file of its image."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from mmtrain.data.order.randomness import uniform
from mmtrain.data.questions.forms import read_question_file
from mmtrain.data.questions.images import ImageFolder, coco_split
from mmtrain.data.questions.parquet_table import parquet_files
from mmtrain.data.questions.question import Question
from mmtrain.data.questions.rows import OnFault, Rows, refuse
from mmtrain.errors import UsageError

EASY_VQA = "easy_vqa:"
EASY_VQA_PARTS = ("train", "val", "trainval", "test")
_EASY_VAL = 0.05
"""Share of easy-VQA's training images that `val` takes; `train` is the rest."""


@dataclass(frozen=True, kw_only=True)
class QuestionedImage:
    """An image and all that is asked about it."""

    path: Path | None
    """The image's file. None: the question is about none."""
    image_id: str
    """As the set names it."""
    questions: tuple[Question, ...]
    """In the order of the file."""


def read_questions(
    images: str,
    questions: str | None,
    annotations: str | None,
    *,
    key: str = "data.train",
    on_fault: OnFault = refuse,
) -> list[QuestionedImage]:
    """A set of questions from its own files, in the order of the images' ids.

    What the files are is told from their content: VQAv2's two (questions and annotations), or
    the one of another set.

    Args:
        images: the folder of images; or `easy_vqa:train`, `:val`, `:trainval` or `:test`, the data
            in the package easy-vqa, whose `val` is cut from its training images.
        questions: the file of questions.
        annotations: VQAv2's or OK-VQA's answers.
        key: the setting that `images` came from, for messages.
        on_fault: what is told of a row or an image that cannot be used; it refuses the set, or
            returns, and the set goes on without.

    Raises:
        UsageError: a file is missing or of no known form, an annotation or an image is missing,
            two files may be one image, or the annotations are of other questions.
    """
    if images.startswith(EASY_VQA):
        return _read_easy_vqa(images)
    assert questions is not None, "the caller looked"
    found = read_question_file(questions, annotations, on_fault=on_fault)
    folder = ImageFolder(Path(images), split=coco_split(found.subtype), key=key)
    return _with_images(found.rows, folder, on_fault)


def read_table(data: str, *, key: str, on_fault: OnFault) -> list[QuestionedImage]:
    """The questions of Parquet files in their order, each with an image of its own or none.

    Raises:
        UsageError: a file cannot be read or is of no known form.
    """
    found = read_question_file(data, None, on_fault=on_fault)
    first = parquet_files(data, key)[0]
    return [
        QuestionedImage(
            path=first if question.has_image else None, image_id=image_id, questions=(question,)
        )
        for image_id, question in found.rows
    ]


def _read_easy_vqa(spec: str) -> list[QuestionedImage]:
    part = spec.removeprefix(EASY_VQA)
    if part not in EASY_VQA_PARTS:
        raise UsageError(f"{spec}: {part!r} is unknown; use {', '.join(EASY_VQA_PARTS)}")
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise UsageError(f"{spec} needs the package easy-vqa; run: pip install 'mmtrain[vqa]'")
    folder = Path(found.origin).parent / "data" / ("test" if part == "test" else "train")
    asked = read_question_file(str(folder / "questions.json"), None)
    images = _with_images(asked.rows, ImageFolder(folder / "images"), refuse)
    if part in ("train", "val"):
        numbers = [int(image.image_id) for image in images]
        draws = uniform(seed=0, epoch=0, position_B=numbers, purpose="easy-vqa val", num=1)
        in_val = (draws[:, 0] < _EASY_VAL).tolist()
        images = [
            one for one, is_val in zip(images, in_val, strict=True) if is_val == (part == "val")
        ]
    return images


def _with_images(rows: Rows, folder: ImageFolder, on_fault: OnFault) -> list[QuestionedImage]:
    """Questions grouped by image, each with its file."""
    grouped: dict[str, list[Question]] = {}
    for image_id, question in rows:
        grouped.setdefault(image_id, []).append(question)
    files: dict[str, Path | None] = {}
    missing: list[str] = []
    for image_id, own in grouped.items():
        if not own[0].has_image:
            files[image_id] = None
            continue
        try:
            file = folder.find(image_id)
        except UsageError as error:
            on_fault("image not told from another", error)
            continue
        if file is None:
            missing.append(image_id)
        else:
            files[image_id] = file
    for image_id in missing:
        error = UsageError(
            f"{folder.key} = {folder.folder}: {len(missing)} of {len(grouped)} images are not "
            f"there, such as {image_id}, of question_id {grouped[image_id][0].question_id} "
            f"({folder.why_missing(image_id)}); fetch them or name another folder"
        )
        on_fault("image missing", error)
    return [
        QuestionedImage(path=file, image_id=image_id, questions=tuple(grouped[image_id]))
        for image_id, file in sorted(files.items(), key=lambda pair: _order(pair[0]))
    ]


def _order(image_id: str) -> tuple[int, str]:
    return (int(image_id), "") if image_id.isdecimal() else (-1, image_id)
