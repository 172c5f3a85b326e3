"""Dialogues by number, whatever files they come from.

A sample's files are its row as `json`, in the form `messages`, and its images, `images/0` and on,
in the order of their places. Of shards they are the tar's own: a .json of any form, and images
beside it, `key.jpg`, `key.0.jpg` and `key.1.jpg`, or as the .json names them.
"""

import base64
import binascii
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mmtrain.data.config import DataConfig
from mmtrain.data.dialogues.dialogue import FORMS, Dialogue, parse_dialogue
from mmtrain.data.dialogues.unread import refuse_unread_image
from mmtrain.data.images.decode import IMAGE_EXTENSIONS
from mmtrain.data.members import json_fields
from mmtrain.data.order.plan import even_pieces
from mmtrain.data.sample_error import SampleError
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.arrow import ArrowRows, RowsByNumber, stored_image
from mmtrain.data.sources.open import Makers, open_source
from mmtrain.data.sources.source import IMAGE_KEY, SampleSource
from mmtrain.data.sources.table import CSV_SUFFIXES, Table
from mmtrain.errors import UsageError

_IMAGES = "images/"
_NUM_PROBES = 64
"""Samples of shards that are looked at before none is found to be a dialogue."""
_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_FILE_URL = "file://"


class DialogueTable:
    """Rows of a JSON or JSONL file as dialogues.

    Args:
        path: the file.
        images: from where relative paths of images count; None: from the file's folder.
        key: the setting that the path came from, for messages.

    Raises:
        UsageError: it cannot be read, or none of its rows is a dialogue.
    """

    def __init__(self, path: Path, *, images: str | None, key: str) -> None:
        self.told = f"{key} = {path}"
        if path.suffix.lower() in CSV_SUFFIXES:
            raise UsageError(f"{self.told}: a dialogue is a row of JSON; write a .jsonl of them")
        self._table = Table(path, column=None, key=key)
        self._folder = path.parent if images is None else Path(images)
        self.num_samples = self._table.num_rows
        self.shard_sizes = even_pieces(self.num_samples)

    @property
    def fingerprint(self) -> str:
        """Of the file's bytes; the images are not looked at."""
        return self._table.fingerprint

    def key(self, sample: int) -> str:
        """The row's `id`; FILE:LINE where it has none."""
        try:
            found = self._table.row(sample).get("id")
        except SampleError:
            found = None
        return str(found) if isinstance(found, str | int) and found != "" else self.place(sample)

    def place(self, sample: int) -> str:
        """FILE:LINE of the row."""
        return self._table.place(sample)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The dialogue as `json`, its images as `images/0` and on.

        Raises:
            SampleError: the row is no dialogue, or an image is not there.
        """
        return _members(self._table.row(sample), self._folder, wanted)


class DialogueRows(RowsByNumber):
    """Rows of Parquet files or a saved data set as dialogues, their images in the table.

    Args:
        data: as `ArrowRows` takes it.
        images: from where relative paths of images count; None: from the files' folder.
        key: the setting that the files came from, for messages.

    Raises:
        UsageError: they cannot be read, or none of the rows is a dialogue.
    """

    def __init__(self, data: Path | Sequence[Path], *, images: str | None, key: str) -> None:
        super().__init__(ArrowRows(data, key=key))
        self.told = self._rows.told
        if not {*FORMS} & {*self._rows.columns}:
            raise UsageError(
                f"{self.told} has no column of dialogues ({', '.join(self._rows.columns)}); they "
                f"are in {' or '.join(FORMS)}"
            )
        self._folder = self._rows.folder if images is None else Path(images)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """As `DialogueTable`."""
        return _members(self._rows.row(sample), self._folder, wanted)


def open_dialogues(
    data: str | tuple[str, ...],
    *,
    images: str | None,
    config: DataConfig,
    key: str = "data.train",
    world_size: int | None = None,
) -> SampleSource:
    """The dialogues that data.train stands for.

    Args:
        data: JSON, JSONL, Parquet, a saved data set, or shards.
        images: from where relative paths of images count; None: from the file's folder.
        config: where indexes are, and what a damaged shard means.
        key: the setting that `data` came from, for messages.
        world_size: as `DataConfig.open_cache` takes it.

    Raises:
        UsageError: they cannot be read, or hold no dialogues.
    """
    if config.image_key != IMAGE_KEY:
        raise UsageError(
            f"data.image_key = {config.image_key} has no effect on dialogues, which name their "
            "images; leave it out"
        )
    if images is not None and not Path(images).is_dir():
        raise UsageError(f"vqa.dialogues.images = {images} is no folder; name one that exists")
    source = open_source(
        data,
        key=key,
        **config.opening(config.open_cache(world_size=world_size)),
        make=dialogue_makers(images),
    )
    if images is not None and isinstance(source, ShardSource):
        raise UsageError(
            f"vqa.dialogues.images = {images} has no effect: {key} are shards, which hold their "
            "images; leave it out"
        )
    refuse_no_dialogues(source, told=f"{key} = {data if isinstance(data, str) else ' '.join(data)}")
    return source


def dialogue_makers(images: str | None) -> Makers:
    """Files of rows as dialogues; see `open_dialogues`."""
    return Makers(partial(DialogueTable, images=images), partial(DialogueRows, images=images))


def told_makers(image_key: str, images: str | None) -> Makers:
    """Files of rows as images, or as dialogues where they have these and no column of images that
    anybody named."""
    of_images, of_dialogues = Makers.images(image_key), dialogue_makers(images)

    def table(path: Path, *, key: str) -> SampleSource:
        try:
            return of_images.table(path, key=key)
        except UsageError:
            is_json = path.suffix.lower() not in CSV_SUFFIXES and path.is_file()
            if not is_json or image_key != IMAGE_KEY:
                raise
            if not _has_form(Table(path, column=None, key=key).columns):
                raise
            return of_dialogues.table(path, key=key)

    def rows(data: Path | Sequence[Path], *, key: str) -> SampleSource:
        try:
            return of_images.rows(data, key=key)
        except UsageError:
            if image_key != IMAGE_KEY or not _has_form(ArrowRows(data, key=key).columns):
                raise
            return of_dialogues.rows(data, key=key)

    return Makers(table, rows)


def _has_form(columns: Iterable[str]) -> bool:
    return IMAGE_KEY not in columns and any(name in columns for name in FORMS)


def refuse_no_dialogues(source: SampleSource, *, told: str) -> None:
    """Look for a dialogue: of a file among all rows, of shards among some.

    Raises:
        UsageError: there is none.
    """
    if not isinstance(source, DialogueTable | DialogueRows | ShardSource):
        raise UsageError(
            f"{told} holds no dialogues; name a .json or .jsonl of them, Parquet files, a saved "
            "data set or shards"
        )
    some = np.linspace(0, source.num_samples - 1, min(_NUM_PROBES, source.num_samples)).astype(int)
    if (reason := _why_none(source, some.tolist())) is None:
        return
    if isinstance(source, ShardSource):
        raise UsageError(f"{told}: none of {some.size} samples looked at is a dialogue; {reason}")
    if (reason := _why_none(source, range(source.num_samples))) is not None:
        raise UsageError(
            f"{told}: none of its {source.num_samples:,} rows is a dialogue that can be used; "
            f"{reason}"
        )


def holds_dialogues(source: SampleSource, *, most: int = _NUM_PROBES) -> bool:
    """Whether samples are dialogues: a file's that was opened as such, or some of those of shards
    that are looked at, by the field that these are in.

    Args:
        source: the samples.
        most: of shards, samples that are looked at.
    """
    if not isinstance(source, ShardSource):
        return isinstance(source, DialogueTable | DialogueRows)
    some = np.linspace(0, source.num_samples - 1, min(most, source.num_samples)).astype(int)
    for sample in some.tolist():
        try:
            fields = json_fields(source.read(sample, {"json"}).get("json"))
        except SampleError:
            continue
        if any(isinstance(fields.get(name), list) for name in FORMS):
            return True
    return False


def _why_none(source: SampleSource, samples: Iterable[int]) -> str | None:
    """What is wrong with the first of samples that are no dialogues; None: one is."""
    first = None
    for sample in samples:
        try:
            parse_dialogue(json_fields(source.read(sample, {"json"}).get("json")))
        except SampleError as error:
            first = first or f"{source.place(sample)}: {error.told}"
        else:
            return None
    return first


def _members(
    row: Mapping[str, Any], folder: Path, wanted: Collection[str] | None
) -> dict[str, bytes]:
    dialogue = parse_dialogue(row)
    if not dialogue.names:
        refuse_unread_image({name: cell for name, cell in row.items() if name not in FORMS})
    placed = dialogue.with_images(len(dialogue.names))
    members = {"json": json.dumps(placed.to_json()).encode()}
    for number, name in enumerate(dialogue.names):
        if wanted is None or f"{_IMAGES}{number}" in wanted:
            members[f"{_IMAGES}{number}"] = _image(name, folder)
    return {name: data for name, data in members.items() if wanted is None or name in wanted}


def _image(name: Any, folder: Path) -> bytes:
    """An image that is there itself, in base64, or by its path."""
    if not isinstance(name, str):
        return stored_image(name, folder)
    if found := _DATA_URL.match(name):
        try:
            return base64.b64decode(name[found.end() :], validate=True)
        except binascii.Error as error:
            raise SampleError("image is no base64", detail=str(error)) from error
    return stored_image(name.removeprefix(_FILE_URL), folder)


def dialogue_files(members: Mapping[str, bytes]) -> tuple[Dialogue, list[bytes]]:
    """A sample's dialogue and its images, each in its place.

    Raises:
        SampleError: it is none, or an image is not there.
    """
    dialogue = parse_dialogue(json_fields(members.get("json")))
    own = [name for name in members if name.startswith(_IMAGES)]
    if own or not dialogue.names:
        found = own or sorted(filter(_is_image, members), key=_natural)
        return dialogue.with_images(len(found)), [members[name] for name in found]
    placed = dialogue.with_images(len(dialogue.names))
    return placed, [members[name] for name in _named(dialogue.names, members)]


def _named(names: Sequence[Any], members: Mapping[str, bytes]) -> list[str]:
    """The files of a sample of a shard that its .json names, by their whole name or the end of it;
    where it names none of them, as it does when it was packed, all of them in their order."""
    images = sorted(filter(_is_image, members), key=_natural)
    by_name = [_member(name, images) for name in names]
    found = [name for name in by_name if name is not None]
    if not found and len(images) == len(names):
        return images
    if len(found) < len(names):
        lost = str(names[by_name.index(None)])
        there = ", ".join(f".{name}" for name in images) or "none"
        raise SampleError("image missing", detail=f"{lost[:200]}; the sample has {there}")
    return found


def _member(name: Any, images: Sequence[str]) -> str | None:
    if not isinstance(name, str):
        return None
    last = PurePosixPath(name).name
    return next((each for each in (last, last.partition(".")[2]) if each in images), None)


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def _natural(name: str) -> list[tuple[int, str]]:
    """2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
