"""A table of images and captions: one row a sample."""

import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmtrain.data.order.plan import even_pieces
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.image_paths import (
    image_extension,
    image_key_option,
    read_image,
    refuse_no_paths,
)
from mmtrain.data.sources.table import Table

CAPTION_COLUMNS = ("txt", "text", "caption")
"""The one of these that a table has is a sample's `txt`, where no other one of them is there."""

_NUM_PROBES = 8
"""Rows that are looked at before a column is found to hold no paths."""


class ManifestSource:
    """Rows of a manifest by number.

    Captions are columns: `data.captions = { title = 1.0 }`. A relative image path starts at the
    manifest's folder.

    Args:
        path: the manifest.
        image_key: the column of the image's path.
        key: the setting that the path came from, for messages.
        folder: where relative paths start, if that is not the manifest's folder.

    Raises:
        UsageError: it cannot be read, has no rows, lacks the column, or that holds no paths.
    """

    def __init__(
        self,
        path: Path,
        *,
        image_key: str,
        key: str = "data.train",
        folder: Path | None = None,
    ) -> None:
        self.path, self.image_key = path, image_key
        self._folder = path.parent if folder is None else folder
        self._table = Table(path, column=image_key, option=image_key_option(key), key=key)
        self._caption_column = caption_column(self._table.columns)
        self.num_samples = self._table.num_rows
        self.shard_sizes = even_pieces(self.num_samples)
        self._refuse_no_paths(key)

    @property
    def fingerprint(self) -> str:
        """Of the manifest's bytes; the images are not looked at."""
        return self._table.fingerprint

    def key(self, sample: int) -> str:
        """The image's path as the manifest has it; FILE:LINE where the row has none."""
        try:
            name = self._table.row(sample).get(self.image_key)
        except SampleError:
            name = None
        return name if isinstance(name, str) and name else self.place(sample)

    def place(self, sample: int) -> str:
        """FILE:LINE of the row."""
        return self._table.place(sample)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The image under its extension, all columns as `json`, the caption's also as `txt`.

        Raises:
            SampleError: the row or its image cannot be used.
        """
        row = self._table.row(sample)
        name = row.get(self.image_key)
        members = {"json": json.dumps(row).encode()}
        caption = row.get(self._caption_column or "")
        if isinstance(caption, str):
            members["txt"] = caption.encode("utf-8", "surrogatepass")
        extension = image_extension(name) if isinstance(name, str) else "image"
        if wanted is None or extension in wanted:
            members[extension] = read_image(self._folder, name)
        return {k: v for k, v in members.items() if wanted is None or k in wanted}

    def _refuse_no_paths(self, key: str) -> None:
        names: list[Any] = []
        for number in range(min(_NUM_PROBES, self.num_samples)):
            with contextlib.suppress(SampleError):
                names.append(self._table.row(number).get(self.image_key))
        refuse_no_paths(names, f"{key} = {self.path}: its column {self.image_key}")


def caption_column(columns: Collection[str]) -> str | None:
    """The column that is a sample's `txt`; None: there is none, or it cannot be told which."""
    found = [name for name in CAPTION_COLUMNS if name in columns]
    return found[0] if len(found) == 1 else None
