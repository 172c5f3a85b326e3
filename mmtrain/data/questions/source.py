"""Questioned images by number, whatever files they come from: what VQA trains on and is judged by.

A sample's .json holds `questions`, a list of {question_id, question, answers, ...}; shards that
`mmtrain data vqa` packs hold the same, so folders and shards train alike.
"""

import hashlib
import io
import json
from collections.abc import Collection
from functools import cache, cached_property
from pathlib import Path

from PIL import Image

from mmtrain.data.config import DataConfig
from mmtrain.data.members import json_fields
from mmtrain.data.order.plan import even_pieces
from mmtrain.data.questions.files import (
    EASY_VQA,
    QuestionedImage,
    read_questions,
    read_table,
)
from mmtrain.data.questions.parquet_table import SUFFIX, TableImages, asks, parquet_files
from mmtrain.data.questions.question import Question, questions_from_json
from mmtrain.data.questions.rows import OnFault, refuse
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.image_paths import image_key_option
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import IMAGE_KEY, SampleSource, wants_image
from mmtrain.data.storage.hidden_names import tars_in
from mmtrain.errors import UsageError


class QuestionSource:
    """A set's images, each with its questions, read from the set's own files."""

    def __init__(self, images: list[QuestionedImage]) -> None:
        self.images = images
        self.num_samples = len(images)
        self.shard_sizes = even_pieces(self.num_samples)

    @property
    def fingerprint(self) -> str:
        """Of the images' names and sizes and of all questions and answers."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        hashed = hashlib.blake2b(digest_size=16)
        for image in self.images:
            asked = json.dumps([one.to_json() for one in image.questions], sort_keys=True)
            hashed.update(f"{self._identity(image)} {asked}\n".encode())
        return hashed.hexdigest()

    def _identity(self, image: QuestionedImage) -> str:
        return f"{image.path.name} {image.path.stat().st_size}" if image.path else "none"

    def key(self, sample: int) -> str:
        """The image's id."""
        return self.images[sample].image_id

    def place(self, sample: int) -> str:
        """The image's folder."""
        path = self.images[sample].path
        return "no image" if path is None else str(path.parent)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The image, and its questions as `json`; no image is opened for the questions alone."""
        image = self.images[sample]
        fields = {
            "image_id": image.image_id,
            "questions": [question.to_json() for question in image.questions],
        }
        members = {"json": json.dumps(fields).encode()}
        if wants_image(wanted):
            extension, data = self._picture(image) if image.path else ("png", _black())
            members[extension] = data
        return {k: v for k, v in members.items() if wanted is None or k in wanted}

    def _picture(self, image: QuestionedImage) -> tuple[str, bytes]:
        assert image.path is not None, "the caller looked"
        try:
            data = image.path.read_bytes()
        except FileNotFoundError as error:
            raise SampleError("image missing") from error
        return image.path.suffix.lower().removeprefix("."), data


class TableQuestionSource(QuestionSource):
    """Questions of Parquet files, which hold their images."""

    def __init__(self, images: list[QuestionedImage], pictures: TableImages) -> None:
        super().__init__(images)
        self.pictures = pictures

    def _identity(self, image: QuestionedImage) -> str:
        return f"{super()._identity(image)} {image.image_id}"

    def _picture(self, image: QuestionedImage) -> tuple[str, bytes]:
        return "image", self.pictures.read(image.image_id)


@cache
def _black() -> bytes:
    """What a model sees with a question that has no image."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    return file.getvalue()


def open_questions(
    data: str | tuple[str, ...],
    *,
    questions: str | None = None,
    annotations: str | None = None,
    key: str = "data.train",
    config: DataConfig | None = None,
    image_key: str = IMAGE_KEY,
    on_fault: OnFault = refuse,
    world_size: int | None = None,
) -> SampleSource:
    """The source that a VQA set's names stand for.

    Args:
        data: with `questions`, the folder of images; else `easy_vqa:PART`, Parquet with questions
            and images, or shards whose .json holds the questions.
        questions: the set's file of questions.
        annotations: the file of answers of VQAv2 or OK-VQA.
        key: the setting that `data` came from, for messages.
        config: for shards: where their indexes are, and what a damaged one means.
        image_key: for shards where there is no `config`: the extension of their images.
        on_fault: as `read_questions`, of a set's own files.
        world_size: with `config`, as `DataConfig.open_cache` takes it.

    Raises:
        UsageError: a file is missing, of no known form, or does not fit the others.
    """
    image_key = image_key if config is None else config.image_key
    single = data if isinstance(data, str) else data[0] if len(data) == 1 else ""
    if brings_questions(single, key) or questions is not None:
        if brings_questions(single, key) and (questions or annotations):
            raise UsageError(f"{key} = {single} brings its questions; leave the files of them out")
        if not single:
            raise UsageError(f"{key}: with questions = {questions} it must be one folder of images")
        if image_key != IMAGE_KEY:
            raise UsageError(
                f"{image_key_option(key)} = {image_key} has no effect: the set's files say which "
                "image a question is of; leave it out"
            )
        if single.endswith(SUFFIX):
            table = read_table(single, key=key, on_fault=on_fault)
            return TableQuestionSource(table, TableImages(parquet_files(single, key)))
        found = read_questions(single, questions, annotations, key=key, on_fault=on_fault)
        return QuestionSource(found)
    if annotations is not None:
        raise UsageError(f"annotations = {annotations} needs questions, the file they belong to")
    if single and Path(single).is_dir() and not tars_in(single):
        raise UsageError(
            f"{key} = {single} is a folder of images: name its file of questions "
            "(vqa.data.questions, --questions)"
        )
    if config is None:
        return open_source(data, image_key=image_key, key=key)
    return open_source(
        data,
        image_key=config.image_key,
        key=key,
        **config.opening(config.open_cache(world_size=world_size)),
    )


def brings_questions(data: str, key: str = "data") -> bool:
    """Whether a name stands for images and questions both.

    Raises:
        UsageError: it is a Parquet file that cannot be read.
    """
    return data.startswith(EASY_VQA) or (data.endswith(SUFFIX) and asks(data, key))


def known_questions(source: SampleSource) -> list[Question]:
    """Every question of a set's own files, which are read already; none of shards."""
    if not isinstance(source, QuestionSource):
        return []
    return [question for image in source.images for question in image.questions]


def _first_questions(source: SampleSource) -> list[Question]:
    try:
        return [*questions_from_json(json_fields(source.read(0, {"json"}).get("json")))]
    except (SampleError, ValueError):  # told with all others when they are read
        return []


def refuse_unanswered(source: SampleSource) -> None:
    """Questions without answers teach nothing and judge nothing.

    Raises:
        UsageError: of a set's own files some have no answer, or those of a shard's first sample.
    """
    questions = known_questions(source) or _first_questions(source)
    bare = [question for question in questions if not question.answers]
    if not bare:
        return
    remedy = (
        "name the set's annotations (--annotations, vqa.data.annotations)"
        if bare[0].form == "vqa"
        else "name a split whose answers are published"
    )
    raise UsageError(
        f"questions: {len(bare)} of {len(questions)} have no answers, the first is question_id "
        f"{bare[0].question_id}; {remedy}"
    )
