"""Questions in Parquet files with their images inside, as the hub keeps many sets."""

import glob
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtrain.data.questions.choice_table import image_columns
from mmtrain.data.sample_error import SampleError
from mmtrain.data.storage.file import refuse_pipe
from mmtrain.errors import UsageError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUFFIX = ".parquet"
_ROW = "row "


def parquet_files(spec: str, key: str) -> list[Path]:
    """The files of a name or a glob, sorted.

    Raises:
        UsageError: there is none, or the library is missing.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"{key} = {spec} needs the package pyarrow; pip install 'mmtrain[parquet]'"
        )
    files = [Path(spec)] if Path(spec).is_file() else [Path(file) for file in glob.glob(spec)]
    if not files:
        raise UsageError(f"{key} = {spec}: there is no such file; name one that exists")
    return sorted(files)


def asks(spec: str, key: str) -> bool:
    """Whether the columns of a name's first file are those of questions with options."""
    names = _open(parquet_files(spec, key)[0], key).schema_arrow.names
    return "question" in names and bool({"options", "choices", "answer"} & {*names})


def table_rows(files: Sequence[Path], key: str) -> list[dict[str, Any]]:
    """All rows; an image is named by its row, None where there is none.

    Raises:
        UsageError: a file cannot be read.
    """
    rows: list[dict[str, Any]] = []
    for file in files:
        table = _open(file, key)
        images = image_columns(table.schema_arrow.names)
        others = [name for name in table.schema_arrow.names if name not in images]
        for group in range(table.num_row_groups):
            texts = _read(table, group, others, file, key)
            pictures = _read(table, group, images, file, key)
            for text, picture in zip(texts, pictures or [{}] * len(texts), strict=True):
                told = f"{key} = {file}: {_ROW}{len(rows)}"
                named = [name for name in images if _holds_image(picture[name], name, told)]
                rows.append(text | dict.fromkeys(named, f"{_ROW}{len(rows)}"))
    return rows


def _open(file: Path, key: str) -> "ParquetFile":
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        refuse_pipe(file.stat(), f"{key} = {file}")
        return ParquetFile(file)
    except (OSError, ArrowException) as error:
        told = " ".join(str(error).split())
        raise UsageError(f"{key} = {file} is no Parquet file ({told}); fetch it again") from error


def _read(
    table: "ParquetFile", group: int, columns: list[str], file: Path, key: str
) -> list[dict[str, Any]]:
    from pyarrow import ArrowException

    try:
        return table.read_row_group(group, columns=columns).to_pylist()
    except (OSError, ArrowException) as error:
        told = " ".join(str(error).split())
        raise UsageError(f"{key} = {file} cannot be read ({told}); fetch it again") from error


def _holds_image(value: Any, name: str, told: str) -> bool:
    """Whether a cell is an image; it may be empty.

    Raises:
        UsageError: it names one, and a question would be asked without.
    """
    if _content(value):
        return True
    if any(value.values()) if isinstance(value, dict) else value:
        raise UsageError(
            f"{told}: {name} = {value!r:.60} is no image; write its bytes into the table"
        )
    return False


def _content(value: Any) -> bytes | None:
    """An image's bytes, alone or as the hub keeps them."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) and content else None


class TableImages:
    """The images of Parquet files by their row; the row group of the last is kept."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)

    def read(self, image_id: str) -> bytes:
        """The image of `row N`.

        Raises:
            SampleError: it cannot be read any more.
        """
        row = int(image_id.removeprefix(_ROW))
        for file in self.files:
            starts = _starts(file)
            if row < starts[-1]:
                group = next(n for n, start in enumerate(starts[1:]) if row < start)
                return _images_of(file, group)[row - starts[group]]
            row -= starts[-1]
        raise SampleError("image missing")


@lru_cache(maxsize=64)
def _starts(file: Path) -> list[int]:
    """The first row of each row group, and how many there are."""
    table = _open(file, "data")
    starts = [0]
    for group in range(table.num_row_groups):
        starts.append(starts[-1] + table.metadata.row_group(group).num_rows)
    return starts


@lru_cache(maxsize=1)
def _images_of(file: Path, group: int) -> list[bytes]:
    table = _open(file, "data")
    columns = image_columns(table.schema_arrow.names)
    rows = _read(table, group, columns, file, "data")
    return [next(filter(None, map(_content, row.values())), b"") for row in rows]
