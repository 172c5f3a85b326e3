"""The run's numbers: metrics.jsonl, a line on the console, and optional mirrors."""

import importlib.util
import json
import math
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, TextIO

from mmtrain.errors import UsageError
from mmtrain.files import parse_json
from mmtrain.train.console import Record, build_console

METRICS_FILE = "metrics.jsonl"
EVAL_FAILED = "eval_failed"
"""Names the evaluation in a line that is of no step but of an evaluation that failed behind it."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Mirrors of metrics.jsonl; the file itself is always written."""

    wandb: bool = False
    """Mirror to Weights & Biases."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """offline: into the run folder (`wandb sync` uploads it later); online: to the service."""
    wandb_project: str = "mmtrain"
    """The project that the run appears in."""
    tensorboard: bool = False
    """Mirror to TensorBoard event files in RUN/tensorboard."""

    def __post_init__(self) -> None:
        for key, package in (("wandb", "wandb"), ("tensorboard", "tensorboard")):
            if getattr(self, key) and importlib.util.find_spec(package) is None:
                raise UsageError(
                    f"{key} = true needs the package {package}; "
                    "pip install 'mmtrain[track]', or set it to false"
                )


class Mirror(Protocol):
    """A second place for the numbers."""

    def log(self, step: int, record: Record) -> None: ...

    def close(self) -> None: ...


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
        recipe: the resolved recipe, which wandb shows.
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
        self._mirrors = _build_mirrors(run_dir, config, start_step, dict(recipe or {}), self.say)

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
                self.say(f"{type(mirror).__name__} is off from here on: {error}")

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
                self.say(f"{type(mirror).__name__} did not close: {error}")

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
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= {f"{key}/{name}": number for name, number in _flat(value).items()}
        else:
            numbers[key] = value
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


def _build_mirrors(
    run_dir: Path,
    config: LogConfig,
    start_step: int,
    recipe: dict[str, Any],
    say: Callable[[str], None],
) -> list[Mirror]:
    mirrors: list[Mirror] = []
    if config.tensorboard:
        mirrors.append(_TensorBoard(run_dir, start_step))
    if config.wandb:
        try:
            mirrors.append(_Wandb(run_dir, config, recipe))
        except Exception as error:  # no network, no login: the numbers are in metrics.jsonl
            say(f"wandb is off: {error}")
    return mirrors


class _TensorBoard:
    def __init__(self, run_dir: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

        folder = str(run_dir / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=start_step + 1 if start_step else None)

    def log(self, step: int, record: Record) -> None:
        for key, value in record.items():
            if key != "step":
                self._writer.add_scalar(key, value, global_step=step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run_dir: Path, config: LogConfig, recipe: dict[str, Any]) -> None:
        import wandb  # optional, and slow to import

        id_file = run_dir / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = wandb.init(
            project=config.wandb_project,
            mode=config.wandb_mode,
            dir=str(run_dir),
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            name=run_dir.name,
            config=recipe,
            settings=wandb.Settings(console="off"),  # its capture of stdout tears the live line
        )

    def log(self, step: int, record: Record) -> None:
        self._run.log(dict(record), step=step)

    def close(self) -> None:
        self._run.finish()
