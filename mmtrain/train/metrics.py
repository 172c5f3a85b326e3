"""The run's numbers: metrics.jsonl, a line on the console, and what `metric_mirrors` writes."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from mmtrain.errors import UsageError
from mmtrain.files import parse_json
from mmtrain.train.console import Record, build_console
from mmtrain.train.metric_mirrors import LogConfig, build_mirrors

METRICS_FILE = "metrics.jsonl"
EVAL_FAILED = "eval_failed"
"""Names the evaluation in a line that is of no step but of an evaluation that failed behind it."""


class MetricsLog:
    """One JSON line for each logged step, shown on the console as it comes, and one for each
    evaluation that failed.

    Opened by rank 0 only. On a resume, lines after the resumed step are dropped (the run will write
    them again), and so is a line cut short by a kill: one line for each logged step remains.

    Args:
        run_dir: holds metrics.jsonl.
        config: which mirrors.
        total_steps: updates of the whole run, for the progress line.
        start_step: updates already done: 0, or those of the checkpoint that is resumed.
        recipe: the resolved recipe, which wandb and trackio show.
        stream: of the console; a live line if it is a terminal, else a line for each record.
        quiet: no record is shown there; what is said still is.
    """

    def __init__(
        self,
        run_dir: Path,
        config: LogConfig,
        *,
        total_steps: int,
        start_step: int = 0,
        recipe: Mapping[str, Any] | None = None,
        stream: TextIO | None = None,
        quiet: bool = False,
    ) -> None:
        self._quiet = quiet
        path = run_dir / METRICS_FILE
        run_dir.mkdir(parents=True, exist_ok=True)
        _drop_lines_after(path, start_step)
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._console = build_console(stream or sys.stderr, total_steps, start_step)
        self._mirrors = build_mirrors(
            run_dir,
            config,
            start_step=start_step,
            recipe=dict(recipe or {}),
            behind=[_flat(record) for record in read_metrics(path)],
            say=self.say,
        )

    def log(self, record: Mapping[str, Any]) -> None:
        """Write a record; `step` counts the updates done. What is not finite becomes null.

        A table, as of figures by source, stays one in the file; elsewhere its numbers are
        TABLE/NAME.

        Raises:
            UsageError: it cannot be written.
        """
        line = {key: _finite(value) for key, value in record.items()}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise UsageError(
                f"{self._path} cannot be written ({error.strerror}); free space, then --resume"
            ) from error
        numbers = _flat(record)
        if not self._quiet:
            self._console.show(numbers)
        for mirror in list(self._mirrors):
            try:
                mirror.log(int(numbers["step"]), numbers)
            # Whatever a service's client raises: it must not end the run.
            except Exception as error:
                self._mirrors.remove(mirror)
                self.say(f"{mirror.name} is off from here on: {error}")

    def log_failed_evaluation(self, step: int, name: str, error: str) -> None:
        """A line of the file between the steps': an evaluation that could not be done.

        Raises:
            OSError: it cannot be written.
        """
        self._file.write(json.dumps({"step": step, EVAL_FAILED: name, "error": error}) + "\n")
        self._file.flush()

    def say(self, text: str) -> None:
        """Print a line without tearing the live one."""
        self._console.say(text)

    def close(self) -> None:
        """End the live line and the mirrors."""
        self._console.close()
        self._file.close()
        for mirror in self._mirrors:
            try:
                mirror.close()
            except Exception as error:
                self.say(f"{mirror.name} did not close: {error}")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return value if math.isfinite(value) else None


def _flat(record: Mapping[str, Any]) -> Record:
    """Numbers alone; what is null in the file was not finite."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= {f"{key}/{name}": number for name, number in _flat(value).items()}
        else:
            numbers[key] = math.nan if value is None else value
    return numbers


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of all logged steps; a line that a kill cut short, or that a hand wrote, is left
    out."""
    return [record for record in _read_all(path) if EVAL_FAILED not in record]


def _read_all(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
    return records


def _drop_lines_after(path: Path, step: int) -> None:
    """Keep the records up to a step, replacing the file at once so that a kill loses nothing."""
    if not path.exists():
        return
    kept = [record for record in _read_all(path) if record["step"] <= step]
    temporary = path.with_suffix(".jsonl.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in kept)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
