"""A table of images and captions: CSV, TSV or JSON lines, one row a sample."""

import csv
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain.data.plan import even_pieces
from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl")
_IMAGE_KEYS = ("filepath", "image", "path", "file_name")


class ManifestSource:
    """Rows of a manifest by number. Only their places are held in memory, 8 bytes a row.

    Captions are columns: `data.captions = { title = 1.0 }`. A relative image path starts at the
    manifest's folder.

    Args:
        path: the manifest; a .csv or .tsv has a header.
        image_key: the column of the image's path.
        key: the setting that the path came from, for messages.

    Raises:
        UsageError: it cannot be read, has no rows, or lacks the column.
    """

    def __init__(self, path: Path, *, image_key: str, key: str = "data.train") -> None:
        self.path, self.image_key = path, image_key
        self._delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix)
        self._header: list[str] = []
        digest = hashlib.blake2b(digest_size=16)
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            self._fingerprint = digest.hexdigest()
            places = list(self._places())
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{key} = {path} cannot be read: {error}") from error
        if self._delimiter is not None and places:
            self._header = self._parse_csv(*places.pop(0))
        self._start_N = np.array([start for start, _ in places], dtype=np.int64)
        self._stop_N = np.array([stop for _, stop in places], dtype=np.int64)
        self.num_samples = len(places)
        if not places:
            raise UsageError(f"{key} = {path} has no rows")
        columns = self._header or list(self._row(0))
        if image_key not in columns:
            known = [name for name in _IMAGE_KEYS if name in columns]
            hint = f"set data.image_key = {known[0]}" if known else "set data.image_key"
            found = ", ".join(columns)
            raise UsageError(
                f"data.image_key = {image_key} is no column of {path} ({found}); {hint}"
            )
        self.shard_sizes = even_pieces(self.num_samples)

    @property
    def fingerprint(self) -> str:
        """Of the manifest's bytes; the images are not looked at."""
        return self._fingerprint

    def key(self, sample: int) -> str:
        """The image's path as the manifest has it."""
        return str(self._row(sample).get(self.image_key, f"row {sample}"))

    def place(self, sample: int) -> str:
        """The manifest."""
        return str(self.path)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The image under its extension, all columns as `json`.

        Raises:
            SampleError: the row or its image cannot be used.
        """
        row = self._row(sample)
        name = row.get(self.image_key)
        if not isinstance(name, str) or not name:
            raise SampleError("no image path")
        members = {"json": json.dumps(row).encode()}
        extension = Path(name).suffix.lower().removeprefix(".")
        if wanted is None or extension in wanted:
            try:
                members[extension] = (self.path.parent / name).read_bytes()
            except (FileNotFoundError, IsADirectoryError) as error:
                raise SampleError("image missing") from error
        return {k: v for k, v in members.items() if wanted is None or k in wanted}

    def _row(self, sample: int) -> dict[str, Any]:
        start, stop = int(self._start_N[sample]), int(self._stop_N[sample])
        if self._delimiter is not None:
            cells = self._parse_csv(start, stop)
            if len(cells) != len(self._header):
                raise SampleError("row has another number of columns than the header")
            return dict(zip(self._header, cells, strict=True))
        try:
            row = json.loads(self._bytes(start, stop))
        except ValueError as error:
            raise SampleError("row invalid") from error
        if not isinstance(row, dict):
            raise SampleError("row invalid")
        return row

    def _bytes(self, start: int, stop: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def _parse_csv(self, start: int, stop: int) -> list[str]:
        assert self._delimiter is not None
        text = self._bytes(start, stop).decode("utf-8-sig")
        return next(csv.reader(text.splitlines(keepends=True), delimiter=self._delimiter))

    def _places(self) -> Iterator[tuple[int, int]]:
        """Where each row starts and stops, in bytes; a quoted cell may span lines."""
        with self.path.open("rb") as file:
            if self._delimiter is None:
                start = 0
                for line in file:
                    if line.strip():
                        yield start, start + len(line)
                    start += len(line)
                return
            position = 0

            def lines() -> Iterator[str]:
                nonlocal position
                for line in file:
                    position += len(line)
                    yield line.decode("utf-8")

            start = 0
            for cells in csv.reader(lines(), delimiter=self._delimiter):
                if cells:
                    yield start, position
                start = position
