"""A run folder that is read again and again while the run goes on: only what is new of its logs,
and the other files only where they changed. Nothing is written, no lock is taken."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from mmtrain.files import parse_json, real_path
from mmtrain.report.curves import CURVES
from mmtrain.report.evaluations import (
    Evaluation,
    earlier_failures,
    evaluation_files,
    failures,
    read_evaluation,
)
from mmtrain.report.reading import is_of_step, read_object, read_text, steps_of
from mmtrain.report.run_folder import RunFolder, is_run
from mmtrain.train.metrics import EVAL_FAILED

Read = TypeVar("Read")

_LOOKED_AT = 256
"""Bytes before the end of what was read, by which a file is known to be the same still."""

# A run of a million lines is kept in memory by what the page draws of it.
_SHOWN = {"step", "samples_seen", "source_loss", "source_epochs", EVAL_FAILED}
_SHOWN |= {curve.key for curve in CURVES}


class Tail:
    """The rows of a file of JSON lines that grows.

    A line that is not ended yet is being written: it is read when it is. A file that is another one
    now, as after a resume, or that became shorter is read from its beginning. After two resumes the
    new file may have the number of the old one, so what was read last must be there still.

    Args:
        path: may not be there yet.
        shown: the keys that are kept of all rows but the newest of a step; None: all.
    """

    def __init__(self, path: Path, *, shown: set[str] | None = None) -> None:
        self.path, self._shown = path, shown
        self.rows: list[dict[str, Any]] = []
        """So far."""
        self.num_damaged = 0
        """Lines that are no objects."""
        self._begin((0, 0))

    def read_on(self) -> None:
        """Read what came since the last time.

        Raises:
            OSError: the file is there and cannot be read.
        """
        try:
            with self.path.open("rb") as stream:
                self._take(stream)
        except FileNotFoundError:
            self._begin((0, 0))

    def _take(self, stream: BinaryIO) -> None:
        now = os.fstat(stream.fileno())
        file = (now.st_dev, now.st_ino)
        stream.seek(max(0, self._offset - len(self._before)))
        if file != self._file or stream.read(len(self._before)) != self._before:
            self._begin(file)
            stream.seek(0)
        ended, newline, _ = stream.read().rpartition(b"\n")
        ended += newline
        self._offset += len(ended)
        self._before = (self._before + ended[-_LOOKED_AT:])[-_LOOKED_AT:]
        for line in ended.split(b"\n"):
            if line.strip():
                self._add(line)

    def _begin(self, file: tuple[int, int]) -> None:
        self._file, self._offset, self._before = file, 0, b""
        self.rows, self._newest, self.num_damaged = [], None, 0

    def _add(self, line: bytes) -> None:
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            self.num_damaged += 1
            return
        if is_of_step(row):
            if self._newest is not None:
                self.rows[self._newest] = self._kept_of(self.rows[self._newest])
            self._newest = len(self.rows)
            self.rows.append(row)
        else:
            self.rows.append(self._kept_of(row))

    def _kept_of(self, row: dict[str, Any]) -> dict[str, Any]:
        kept = self._shown
        return row if kept is None else {key: row[key] for key in row if key in kept}


class LiveRun:
    """A run, as far as it is by now.

    Args:
        path: its folder, which may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics = Tail(path / "metrics.jsonl", shown=_SHOWN)
        self._bad_samples = Tail(path / "bad_samples.jsonl")
        self._bad_batches = Tail(path / "bad_batches.jsonl")
        self._kept: dict[Path, tuple[object, object, list[str]]] = {}

    def read(self) -> RunFolder | None:
        """What a report shows but for the look; None as long as no run is there."""
        if not is_run(self.path):
            return None
        notes: list[str] = []
        for tail in (self._metrics, self._bad_samples, self._bad_batches):
            _read_on(tail, notes)
        evals = self.path / "eval"
        found = [self._eval(file, notes) for file in evaluation_files(evals)]
        return RunFolder(
            path=self.path,
            name=real_path(self.path).name,
            metrics=steps_of(self._metrics.rows),
            evaluations=[one for one in found if one is not None],
            bad_samples=self._bad_samples.rows,
            bad_batches=self._bad_batches.rows,
            recipe=self._once(self.path / "recipe.toml", read_text, notes),
            facts=self._once(self.path / "run.json", read_object, notes),
            look=None,
            notes=[*failures(evals, notes), *earlier_failures(evals, self._metrics.rows), *notes],
        )

    def _eval(self, file: Path, notes: list[str]) -> Evaluation | None:
        # Its intervals are drawn from the outcomes, which takes a while.
        beside = [file.with_suffix(f".{more}.jsonl") for more in ("history", "outcomes")]

        def read(path: Path, notes: list[str]) -> Evaluation | None:
            result = read_object(path, notes)
            return read_evaluation(path, result, notes) if result else None

        return self._once(file, read, notes, beside=beside)

    def _once(
        self,
        path: Path,
        read: Callable[[Path, list[str]], Read],
        notes: list[str],
        *,
        beside: list[Path] | None = None,
    ) -> Read:
        """What a file says, read again only if it, or one of those beside it, is another one."""
        stamps = [_stamp(each) for each in (path, *(beside or ()))]
        if path not in self._kept or self._kept[path][0] != stamps:
            own: list[str] = []
            self._kept[path] = (stamps, read(path, own), own)
        _, value, told = self._kept[path]
        notes += told
        return cast("Read", value)


def _read_on(tail: Tail, notes: list[str]) -> None:
    try:
        tail.read_on()
    except OSError as error:
        notes.append(f"{tail.path.name} cannot be read ({error.strerror}).")
    if tail.num_damaged:
        lines = "1 line" if tail.num_damaged == 1 else f"{tail.num_damaged} lines"
        notes.append(f"{lines} of {tail.path.name} could not be read: damaged.")


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Another one where the file is, or was written to."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
