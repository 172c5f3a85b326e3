"""A Hugging Face data set on disk: `Dataset.save_to_disk`, Parquet files, a file of its cache."""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mmtrain.data.order.plan import even_pieces
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.folder_reading import SPLITS
from mmtrain.data.sources.image_paths import image_key_option, read_image, refuse_no_paths
from mmtrain.data.sources.manifest import caption_column
from mmtrain.data.sources.source import wants_image
from mmtrain.errors import UsageError

_EXTENSIONS = {b"\xff\xd8": "jpg", b"\x89P": "png"}
_NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}")
_NUM_PROBES = 8
ARROW_SUFFIXES = (".arrow", ".feather")
_FILE_MAGIC = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def is_saved(folder: Path) -> bool:
    """Whether a folder is what `save_to_disk` wrote, of one split or of several."""
    return (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()


def refuse_wrong_level(folder: Path, names: Sequence[str], *, key: str) -> None:
    """Of Arrow files in a folder that is no saved data set: name what can be read.

    Raises:
        UsageError: always, where there are names.
    """
    if not names:
        return
    above = {parent for name in names for parent in (folder / name).parents}
    saved = sorted(str(parent) for parent in above if is_saved(parent))
    if saved:
        told = f"none itself, but there are saved data sets; name one: {' or '.join(saved)}"
    else:
        told = (
            "and no dataset_info.json, so it is no data set that save_to_disk wrote; name one "
            f"file: {folder / min(names)}"
        )
    raise UsageError(f"{key} = {folder} holds Arrow files, {told}")


def parquet_of_one_split(folder: Path, names: Sequence[str], *, key: str) -> list[Path]:
    """The Parquet files of a folder, if they are of one split: the hub's `data/train-00000-of-...`.

    Raises:
        UsageError: they are of several.
    """
    splits: dict[str, list[str]] = {}
    for name in sorted(names):
        splits.setdefault(_split(name), []).append(name)
    if len(splits) > 1:
        choices = [
            str(folder / (each[0] if len(each) == 1 else pattern))
            for pattern, each in splits.items()
        ]
        raise UsageError(
            f"{key} = {folder} holds several splits; name the files of one: {' or '.join(choices)}"
        )
    return [folder / name for name in sorted(names)]


def _split(name: str) -> str:
    """A glob of the files of the same split: those of their folder with the same beginning."""
    path = PurePosixPath(name)
    numbered = _NUMBERED.fullmatch(path.stem)
    words = re.split(r"[^a-z]+", path.stem.lower())
    known = next((f"*{word}*" for word in words if word in SPLITS), "*")
    return str(path.parent / f"{f'{numbered[1]}-*' if numbered else known}.parquet")


class ArrowRows:
    """Rows of a saved data set by number; memory-mapped by the `datasets` library, which reads it.
    Images are given as bytes or paths, so that they go through the same limits and decoders as
    everybody's.

    Args:
        data: what `Dataset.save_to_disk` wrote, .parquet files, or one .arrow file of its cache.
        key: the setting that the folder came from, for messages.

    Raises:
        UsageError: the library is missing, the data set cannot be read, has no rows or several
            splits.
    """

    def __init__(self, data: Path | Sequence[Path], *, key: str) -> None:
        files = [data] if isinstance(data, Path) else list(data)
        self.path = files[0] if len(files) == 1 else files[0].parent
        self.told = f"{key} = {self.path}"
        rows = self._open(data)
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self.columns: list[str] = rows.column_names
        self.fingerprint = (
            self._content()
            if not self.path.is_dir() and _is_arrow(files)
            else str(rows._fingerprint)
        )
        self._rows, self.pictures = _undecoded(rows)
        self.num_rows = len(rows)
        if not self.num_rows:
            raise UsageError(f"{self.told} has no rows")

    def row(self, number: int) -> dict[str, Any]:
        """A row by its columns."""
        return dict(self._rows[number])

    def _open(self, data: Path | Sequence[Path]) -> Any:
        if importlib.util.find_spec("datasets") is None:
            raise UsageError(
                f"{self.told} needs the package datasets; pip install 'mmtrain[datasets]'"
            )
        if not isinstance(data, Path) and _is_arrow(data):
            self._refuse_other_than_stream()
        import datasets  # optional, and slow to import

        try:
            if isinstance(data, Path):
                rows = datasets.load_from_disk(str(data))
            elif _is_arrow(data):
                rows = datasets.Dataset.from_file(str(self.path))
            else:
                rows = datasets.Dataset.from_parquet([str(file) for file in data])
        except Exception as error:  # the library raises nearly anything
            told = " ".join(str(error).split())
            raise UsageError(f"{self.told} cannot be read: {told}") from error
        if isinstance(rows, datasets.DatasetDict):
            if len(rows) != 1:
                choices = " or ".join(str(self.path / str(name)) for name in sorted(rows))
                raise UsageError(f"{self.told} holds several splits; name one: {choices}")
            rows = next(iter(rows.values()))
        return rows

    def _refuse_other_than_stream(self) -> None:
        try:
            with self.path.open("rb") as file:
                head = file.read(len(_FILE_MAGIC))
                file.seek(-min(len(_STREAM_END), os.fstat(file.fileno()).st_size), os.SEEK_END)
                tail = file.read()
        except OSError as error:
            raise UsageError(f"{self.told} cannot be read: {error.strerror}") from error
        if head == _FILE_MAGIC:
            raise UsageError(
                f"{self.told} is of Arrow's file format (Feather), of which the stream format "
                "alone is read; write it as Parquet (pandas.read_feather, then to_parquet)"
            )
        if tail != _STREAM_END:  # the library would take the rows that are there for all
            raise UsageError(
                f"{self.told} is no Arrow stream, or is cut: its end is missing; fetch or write "
                "it again"
            )

    def _content(self) -> str:
        """The library's own hangs on when the file was written."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class RowsByNumber:
    """What every source over `ArrowRows` says of itself.

    Args:
        rows: of the data set.
    """

    def __init__(self, rows: ArrowRows) -> None:
        self._rows = rows
        self.num_samples = rows.num_rows
        self.shard_sizes = even_pieces(self.num_samples)

    @property
    def fingerprint(self) -> str:
        """The data set's own, or the digest of an .arrow file."""
        return self._rows.fingerprint

    def key(self, sample: int) -> str:
        """The row's number."""
        return f"row {sample}"

    def place(self, sample: int) -> str:
        """The folder or the file."""
        return str(self._rows.path)


class ArrowSource(RowsByNumber):
    """Rows of a saved data set as samples.

    Captions and labels are columns: `data.captions = { caption = 1.0 }`. Images are columns too:
    themselves, or their paths, which count from the files' folder.

    Args:
        data: as `ArrowRows` takes it.
        image_key: the column of the images.
        key: the setting that the folder came from, for messages.

    Raises:
        UsageError: as `ArrowRows`, or the column is not there.
    """

    def __init__(
        self, data: Path | Sequence[Path], *, image_key: str, key: str = "data.train"
    ) -> None:
        rows = ArrowRows(data, key=key)
        super().__init__(rows)
        self.image_key = image_key
        if image_key not in rows.columns:
            raise UsageError(
                f"{image_key_option(key)} = {image_key} is no column of {rows.path} "
                f"({', '.join(rows.columns)}); name the images' one"
            )
        self._caption_column = caption_column(rows.columns)
        probes = [rows.row(n)[image_key] for n in range(min(_NUM_PROBES, self.num_samples))]
        refuse_no_paths(probes, f"{rows.told}: its column {image_key}")

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The image under its extension, the other columns as `json`, the caption's also as `txt`.

        Raises:
            SampleError: the row has no image.
        """
        row = self._rows.row(sample)
        image = row.pop(self.image_key)
        caption = row.get(self._caption_column or "")
        fields = {name: value for name, value in row.items() if name not in self._rows.pictures}
        members = {"json": json.dumps(fields, default=str).encode()}
        if isinstance(caption, str):
            members["txt"] = caption.encode()
        if wants_image(wanted):
            content = stored_image(image, self._rows.folder)
            members[_EXTENSIONS.get(content[:2], "image")] = content
        return {k: v for k, v in members.items() if wanted is None or k in wanted}


def stored_image(value: Any, folder: Path) -> bytes:
    """An image as `datasets` keeps it: bytes, a path, or one of both.

    Args:
        value: what the row has.
        folder: from where a relative path counts.

    Raises:
        SampleError: there is none.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        raise SampleError("no image")
    return value if isinstance(value, bytes) else read_image(folder, value)


def _is_arrow(files: Sequence[Path]) -> bool:
    return files[0].suffix.lower() in ARROW_SUFFIXES


def _undecoded(rows: Any) -> tuple[Any, set[str]]:
    """The rows with images, and lists of images, as bytes or paths; the columns of images."""
    import datasets

    pictures: set[str] = set()
    for name, kind in rows.features.items():
        if isinstance(kind, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
            pictures.add(name)
        elif isinstance(getattr(kind, "feature", None), datasets.Image):
            rows = rows.cast_column(name, type(kind)(datasets.Image(decode=False)))
            pictures.add(name)
    return rows, pictures
