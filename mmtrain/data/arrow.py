"""A Hugging Face data set on disk, as `Dataset.save_to_disk` or Parquet files leave it."""

import importlib.util
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmtrain.data.plan import even_pieces
from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError

_EXTENSIONS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}


def is_arrow_folder(folder: Path) -> bool:
    """Whether a folder is a saved data set, or holds Parquet files."""
    return (folder / "dataset_info.json").is_file() or any(folder.glob("*.parquet"))


class ArrowSource:
    """Rows of a saved data set by number; memory-mapped by the `datasets` library, which reads it.

    Captions and labels are columns: `data.captions = { caption = 1.0 }`.

    Args:
        folder: what `Dataset.save_to_disk` wrote, or a folder of .parquet files.
        image_key: the column of the images.
        key: the setting that the folder came from, for messages.

    Raises:
        UsageError: the library is missing, the data set cannot be read, or lacks the column.
    """

    def __init__(self, folder: Path, *, image_key: str, key: str = "data.train") -> None:
        if importlib.util.find_spec("datasets") is None:
            raise UsageError(
                f"{key} = {folder} needs the package datasets; pip install 'mmtrain[datasets]'"
            )
        import datasets  # optional, and slow to import

        self.folder, self.image_key = folder, image_key
        try:
            if (folder / "dataset_info.json").is_file():
                rows = datasets.load_from_disk(str(folder))
            else:
                rows = datasets.Dataset.from_parquet(
                    [str(file) for file in sorted(folder.glob("*.parquet"))]
                )
        except Exception as error:  # the library raises nearly anything
            raise UsageError(f"{key} = {folder} cannot be read: {error}") from error
        if not isinstance(rows, datasets.Dataset):
            raise UsageError(f"{key} = {folder} holds several splits; name the folder of one")
        if image_key not in rows.column_names:
            raise UsageError(
                f"data.image_key = {image_key} is no column of {folder} "
                f"({', '.join(rows.column_names)}); name the images' one"
            )
        # Undecoded: the bytes go through the same limits and decoders as everybody's.
        self._rows = rows.cast_column(image_key, datasets.Image(decode=False))
        self._fingerprint = str(rows._fingerprint)
        self.num_samples = len(rows)
        self.shard_sizes = even_pieces(self.num_samples)

    @property
    def fingerprint(self) -> str:
        """The data set's own."""
        return self._fingerprint

    def key(self, sample: int) -> str:
        """The row's number."""
        return f"row {sample}"

    def place(self, sample: int) -> str:
        """The folder."""
        return str(self.folder)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The image under its extension, all other columns as `json`.

        Raises:
            SampleError: the row has no image.
        """
        row: dict[str, Any] = dict(self._rows[sample])
        image = row.pop(self.image_key)
        content = None if image is None else image["bytes"]
        if content is None and image is not None and image.get("path"):
            content = Path(image["path"]).read_bytes()
        if content is None:
            raise SampleError("no image")
        extension = _EXTENSIONS.get(content[:2], "jpg")
        members = {extension: content, "json": json.dumps(row, default=str).encode()}
        return {k: v for k, v in members.items() if wanted is None or k in wanted}
