"""Records of a CSV file: a quoted cell may span lines, a quote that is never closed may not."""

import contextlib
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmtrain.data.images.decode import has_image_name
from mmtrain.data.sources.text_lines import Line, Lines, Place

_DELIMITERS = (",", "\t", ";", "|")
_LONE_RETURN = re.compile(r"\r(?!\n)")
_RETURN = "\ufdd0"
"""Stands for a carriage return within a line, which the csv module takes for a line's end."""


@dataclass(frozen=True, kw_only=True)
class Separated:
    """How a file is laid out."""

    delimiter: str
    """Between cells."""
    header: list[str]
    """The columns."""

    @classmethod
    def of(cls, header: str, column: str, *, prefer_tabs: bool) -> "Separated":
        """By its header: the separator that makes `column` a column, or else most columns.

        Raises:
            csv.Error: the header is malformed.
        """
        found: list[Separated] = []
        for each in sorted(_DELIMITERS, key=lambda each: (each == "\t") != prefer_tabs):
            with contextlib.suppress(csv.Error):  # cells in quotes are malformed by other ones
                found.append(cls(delimiter=each, header=parse_record(header, each)))
        if not found:
            raise csv.Error("a quote is not closed")
        return max(found, key=lambda one: (column in one.header, len(one.header)))

    def records(self, lines: Lines, *, images: str) -> Iterator[Place]:
        """Where each record is. A malformed one is its first line alone, so that a quote which is
        never closed costs one record and not the rest of the file.

        Args:
            lines: those behind the header.
            images: the column of the images' paths.
        """
        for first in lines:
            start, stop, number, line = first
            if b'"' in line:
                stop = self._stop(first, lines, images)
            yield start, stop, number

    def _stop(self, first: Line, lines: Lines, images: str) -> int:
        """The byte behind a record with quotes; takes the further lines that it needs."""
        taken = [first]

        def texts() -> Iterator[str]:
            yield _text(first)
            for line in lines:
                taken.append(line)
                yield _text(line)

        try:
            next(csv.reader(texts(), delimiter=self.delimiter, strict=True))
        except csv.Error:  # not closed, not within the module's 131,072 characters, not doubled
            is_whole = False
        else:
            is_whole = not any(self._is_row(line, images) for _, _, _, line in taken[1:])
        if not is_whole:
            lines.give_back(taken[1:])
        return taken[-1 if is_whole else 0][1]

    def _is_row(self, line: bytes, images: str) -> bool:
        """Whether a line inside a quoted cell is a record of its own: it names an image."""
        cells = line.decode("utf-8", "replace").strip("\r\n").split(self.delimiter)
        column, width = self.header.index(images), len(self.header)
        if len(cells) < width:
            return False
        return any(has_image_name(cells[at].strip('" ')) for at in (column, column - width))


def parse_record(text: str, delimiter: str) -> list[str]:
    """The cells of one record.

    Raises:
        csv.Error: it is malformed.
    """
    cells = next(csv.reader([_marked(text)], delimiter=delimiter, strict=True), [])
    return [cell.replace(_RETURN, "\r") for cell in cells]


def _text(line: Line) -> str:
    return _marked(line[3].decode("utf-8", "surrogateescape"))


def _marked(text: str) -> str:
    return _LONE_RETURN.sub(_RETURN, text) if "\r" in text else text
