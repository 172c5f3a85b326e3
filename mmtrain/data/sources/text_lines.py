"""The lines of a file, each with its place. A line ends at `\\n` and nowhere else."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

BOM = b"\xef\xbb\xbf"

Place = tuple[int, int, int]
"""First byte, the byte behind the last, number of the first line from 1."""
Line = tuple[int, int, int, bytes]
"""The place of a line and what it holds."""


class Lines:
    """Goes over the lines that are not blank; some may be given back, to come again.

    Args:
        path: the file; a byte order mark is passed over.
        blank: the bytes that a blank line is made of.
    """

    def __init__(self, path: Path, *, blank: bytes = b" \t\r\n") -> None:
        self._fresh = _lines(path, blank)
        self._returned: deque[Line] = deque()

    def __iter__(self) -> Iterator[Line]:
        return self

    def __next__(self) -> Line:
        return self._returned.popleft() if self._returned else next(self._fresh)

    def give_back(self, lines: Sequence[Line]) -> None:
        """Let them come next, in their order."""
        self._returned.extendleft(reversed(lines))


def _lines(path: Path, blank: bytes) -> Iterator[Line]:
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            stop = start + len(line)
            if number == 1 and line.startswith(BOM):
                start, line = len(BOM), line.removeprefix(BOM)
            if line.strip(blank):
                yield start, stop, number, line
            start = stop
