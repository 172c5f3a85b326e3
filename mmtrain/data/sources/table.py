"""A table of rows on disk, by number: CSV, TSV, JSON lines or a JSON array. Told by its content.

A line ends at `\\n`, with or without a `\\r` before it, and nowhere else: captions hold what other
programs break lines at. A row that is malformed spoils no other one, and is told when it is read.
"""

import csv
import hashlib
import json
from array import array
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain.data.images.decode import has_image_name
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.csv_records import Separated, parse_record
from mmtrain.data.sources.text_lines import BOM, Lines, Place
from mmtrain.data.storage.file import refuse_pipe
from mmtrain.errors import UsageError
from mmtrain.files import parse_json

CSV_SUFFIXES = (".csv", ".tsv")
TABLE_SUFFIXES = (*CSV_SUFFIXES, ".jsonl", ".ndjson", ".json")
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_SPACE = b" \t\r\n"
_HEAD = 1 << 16
_NUM_PROBES = 64
"""Rows that are looked at before a column of JSON rows is found to be in none."""


class Table:
    """Rows by number. Only their places are held in memory, 24 bytes a row.

    Args:
        path: the file; a .csv or .tsv has a header. Commas, tabs, semicolons and bars are told
            apart by it.
        column: one that the table must have, such as the images' paths; None: any will do, and it
            is no .csv.
        option: the setting that named the column, for messages; None: it is always called so.
        key: the setting that the path came from, for messages.

    Raises:
        UsageError: it cannot be read, has no rows, or lacks the column.
    """

    def __init__(
        self,
        path: Path,
        *,
        column: str | None,
        option: str | None = "data.image_key",
        key: str = "data.train",
    ) -> None:
        self.path, self._told = path, f"{key} = {path}"
        self._separated: Separated | None = None
        try:
            refuse_pipe(path.stat(), self._told)
            with path.open("rb") as file:
                self.fingerprint = hashlib.file_digest(file, _blake2b).hexdigest()
            places = array("q", chain.from_iterable(self._spans(column)))
        except OSError as error:
            raise UsageError(f"{self._told} cannot be read: {error.strerror}") from error
        self._places_N3 = np.array(places, dtype=np.int64).reshape(-1, 3)
        self.num_rows = len(self._places_N3)
        if not self.num_rows:
            raise UsageError(f"{self._told} has no rows")
        self.columns = self._separated.header if self._separated else self._keys(column)
        if column is not None and column not in self.columns:
            here = ", ".join(self.columns)
            if option is None:
                raise UsageError(f"{self._told} has no column {column}; it has {here}")
            raise UsageError(
                f"{option} = {column} is no column of {path} ({here}); "
                f"{_hint(self.columns, option)}"
            )

    def place(self, number: int) -> str:
        """FILE:LINE of a row."""
        return f"{self.path}:{self._places_N3[number, 2]}"

    def row(self, number: int) -> dict[str, Any]:
        """A row by its columns.

        Raises:
            SampleError: it is malformed.
        """
        start, stop, _ = self._places_N3[number].tolist()
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(stop - start)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SampleError("row is not UTF-8") from error
        if self._separated is not None:
            return _by_columns(text, self._separated)
        try:
            row = parse_json(text)
        except ValueError as error:
            raise SampleError("row is no JSON", detail=str(error)) from error
        if not isinstance(row, dict):
            raise SampleError("row is no JSON object")
        return row

    def _spans(self, column: str | None) -> Iterator[Place]:
        with self.path.open("rb") as file:
            head = file.read(_HEAD)
        if head.startswith(_WIDE_BOMS):
            raise UsageError(f"{self._told} is UTF-16; save it as UTF-8")
        if self.path.suffix.lower() in CSV_SUFFIXES:
            assert column is not None, "the header is told by it"
            return self._csv_spans(column)
        if head.removeprefix(BOM).lstrip(_SPACE).startswith(b"[") and self._is_array():
            return self._array_spans()
        if self.path.suffix.lower() == ".json":
            self._refuse_one_object()
        return (line[:3] for line in Lines(self.path))

    def _csv_spans(self, column: str) -> Iterator[Place]:
        lines = Lines(self.path, blank=b" \r\n")  # tabs separate empty cells
        try:
            header = next(lines, (0, 0, 0, b""))[3].decode("utf-8")
            if "\r" in header.rstrip("\r\n"):
                raise UsageError(f"{self._told}: its lines end in \\r alone; write them with \\n")
            separated = Separated.of(header, column, prefer_tabs=self.path.suffix.lower() == ".tsv")
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{self._told}: its header cannot be read: {error}") from error
        names = separated.header
        if column not in names and any(map(has_image_name, names)):
            raise UsageError(
                f"{self._told} has no header: its first line is a row ({', '.join(names)}); put "
                f"the columns' names above it, such as {column}"
            )
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"{self._told}: its header has {twice!r} twice; rename one")
        self._separated = separated
        yield from separated.records(lines, images=column)

    def _array_spans(self) -> Iterator[Place]:
        """Each element of an array. What is behind a mistake in it cannot be told apart."""
        decoder = json.JSONDecoder()
        try:
            text = self.path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(f"{self._told} is not UTF-8: {error}") from error
        offset = len(BOM) if self.path.read_bytes()[:3] == BOM else 0
        at, line = text.index("[") + 1, 1
        done = 0
        try:
            at = _behind_space(text, at)
            while text[at] != "]":
                _, end = decoder.raw_decode(text, at)
                line += text.count("\n", done, at)
                offset += len(text[done:at].encode())
                stop = offset + len(text[at:end].encode())
                yield offset, stop, line
                offset, line, done = stop, line + text.count("\n", at, end), end
                at = _behind_space(text, end)
                if text[at] == ",":
                    at = _behind_space(text, at + 1)
                elif text[at] != "]":
                    raise ValueError("no comma")
            if text[at + 1 :].strip():
                at += 1
                raise ValueError("something stands behind its end")
        except (ValueError, IndexError, RecursionError) as error:
            broken = text.count("\n", 0, at) + 1
            raise UsageError(
                f"{self._told} is a damaged JSON array from line {broken} on ({error}); mend it"
            ) from error

    def _is_array(self) -> bool:
        """Whether what begins with a bracket is an array of rows, and not a line that is no row."""
        lines = Lines(self.path)
        try:
            first = parse_json(next(lines)[3])
        except ValueError:
            return True
        return next(lines, None) is None or any(isinstance(row, dict) for row in first)

    def _refuse_one_object(self) -> None:
        """A .json may hold lines; one object over several lines is no table."""
        try:
            parse_json(next(Lines(self.path), (0, 0, 0, b"{}"))[3])
        except ValueError as error:
            raise UsageError(
                f"{self._told} is neither an array of rows nor a row a line; write one of these"
            ) from error

    def _keys(self, column: str | None) -> list[str]:
        """Of the first row that has the one of the name, else of the first at all."""
        keys: list[str] = []
        reason = ""
        for number in range(min(_NUM_PROBES, self.num_rows)):
            try:
                row = self.row(number)
            except SampleError as error:
                reason = reason or f"{self.place(number)}: {error.told}"
                continue
            keys = keys or list(row)
            if column in row:
                return list(row)
        if not keys:
            raise UsageError(f"{self._told} has no usable row ({reason}); mend them")
        return keys


def _blake2b() -> Any:
    return hashlib.blake2b(digest_size=16)


def _behind_space(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def _by_columns(text: str, separated: Separated) -> dict[str, Any]:
    try:
        cells = parse_record(text, separated.delimiter)
    except csv.Error as error:
        raise SampleError("row has a quote that is not closed") from error
    if len(cells) != len(separated.header):
        raise SampleError(
            "row has another number of columns than the header",
            detail=f"{len(cells)}, not {len(separated.header)}",
        )
    return dict(zip(separated.header, cells, strict=True))


def _hint(columns: list[str], option: str) -> str:
    known = [name for name in ("filepath", "image", "path", "file_name") if name in columns]
    return f"set {option} = {known[0]}" if known else f"set {option}"
