"""Whether a run is going, told from its folder alone: no lock is taken, nothing is written."""

import fcntl
import os
import statistics
import struct
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from mmtrain.report.facts import duration
from mmtrain.report.reading import column, number, read_lines, read_text
from mmtrain.report.run_folder import RunFolder
from mmtrain.settings.counted import counted
from mmtrain.train.metrics import METRICS_FILE
from mmtrain.train.run_lock import LOCK_FILE

Kind = Literal["missing", "starting", "training", "finishing", "silent", "stopped", "gone", "ended"]
Holder = Literal["somebody", "nobody", "no file", "unknown"]

_LINES_LOOKED_AT = 20
_SILENT_SECONDS, _SILENT_GAPS = 60.0, 20
"""Without a line for so long, and for so many gaps between lines, a run is called silent."""
_GRACE_SECONDS = 15.0
"""Where a file system has no locks, so long after a line a run is taken to go on."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How a run stands."""

    kind: Kind
    """In a word."""
    text: str
    """For the reader, without the age."""
    age: float | None = None
    """Seconds since its newest line, where that is of interest."""


def state_of(path: Path, run: RunFolder | None, *, now: float | None = None) -> RunState:
    """How the run of a folder stands.

    Args:
        path: its folder, which may not be there.
        run: what is in it; None: no run yet.
        now: the time, as `time.time` tells it.
    """
    holder = lock_holder(path / LOCK_FILE)
    if run is None or not run.metrics:
        return _before_the_first_line(path, run, holder)
    step, total = run.metrics[-1]["step"], number(run.facts.get("total_steps"))
    at = f"step {step:,}" if total is None else f"step {step:,} of {total:,.0f}"
    is_done = total is not None and step >= total
    if holder == "somebody" and _is_newer(path / LOCK_FILE, path / METRICS_FILE):
        return RunState(kind="starting", text=f"starting again; it was at {at}")
    if holder == "nobody":
        ends = " before all was evaluated and exported" if is_done else ""
        text = f"its process is gone at {at}{ends}, killed perhaps; {_resume(path)}"
        return RunState(kind="gone", text=text)
    if holder != "somebody" and is_done:
        return RunState(kind="ended", text=f"ended: {counted(step, 'step')} done")
    age = _age(path / METRICS_FILE, time.time() if now is None else now)
    gap = _gap(run)
    if holder == "no file" and age > max(_GRACE_SECONDS, 2 * gap):
        return RunState(kind="stopped", text=f"stopped at {at}; {_resume(path)}")
    if is_done:
        return RunState(kind="finishing", text=f"{at} done, evaluating and exporting", age=age)
    if age > max(_SILENT_SECONDS, _SILENT_GAPS * gap):
        usual = f", a line used to come every {duration(gap)}" if gap else ""
        text = f"writes nothing at {at}{usual}: it compiles, evaluates, saves or hangs"
        return RunState(kind="silent", text=text, age=age)
    left = _left(run, step, total)
    return RunState(kind="training", text=f"training, {at}{left}", age=age)


def _before_the_first_line(path: Path, run: RunFolder | None, holder: Holder) -> RunState:
    if _is_damaged(path / METRICS_FILE):
        return _unreadable(path, holder)
    if holder == "somebody":
        return RunState(kind="starting", text="starting, no step is logged yet")
    if holder == "nobody":
        text = "its process is gone before a step was logged, killed perhaps"
        return RunState(kind="gone", text=text)
    if run is not None:
        return RunState(kind="missing", text="holds a recipe, and no step is logged yet")
    there = "holds no run yet" if path.is_dir() else "is not there yet"
    return RunState(kind="missing", text=f"{there}; it is shown as soon as it begins")


def _unreadable(path: Path, holder: Holder) -> RunState:
    """Of a run whose lines are all damaged."""
    damaged = f"no line of its {METRICS_FILE} can be read"
    if holder == "somebody":
        return RunState(kind="training", text=f"goes on, and {damaged}")
    if holder == "nobody":
        text = f"its process is gone, killed perhaps, and {damaged}; {_resume(path)}"
        return RunState(kind="gone", text=text)
    return RunState(kind="stopped", text=f"is stopped, and {damaged}; {_resume(path)}")


def _is_damaged(path: Path) -> bool:
    """Whether a file has lines, and none that tells anything; a first one may be half written."""
    notes: list[str] = []
    return not read_lines(path, notes) and bool(notes) and "\n" in read_text(path, notes)


def lock_holder(path: Path) -> Holder:
    """Whether somebody holds a run's lock, asked of the kernel without taking it.

    A record lock dies with its process, so that a file that nobody holds was left by one that was
    killed. Only Linux is asked; elsewhere the file itself must do. Not for the process that holds
    it: to close the file would give its lock up.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return "unknown" if path.exists() else "no file"
    try:
        if sys.platform != "linux":
            return "somebody"
        # struct flock: type, whence, start, length, process.
        asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
        kind = struct.unpack("hhqqi", answer)[0]
        return "nobody" if kind == fcntl.F_UNLCK else "somebody"
    except OSError:
        return "unknown"
    finally:
        os.close(descriptor)


def _age(path: Path, now: float) -> float:
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return 0.0


def _is_newer(path: Path, other: Path) -> bool:
    """Whether a file was written after another one: a lock is when its owner begins."""
    try:
        return path.stat().st_mtime_ns > other.stat().st_mtime_ns
    except OSError:
        return False


def _gap(run: RunFolder) -> float:
    """Seconds from a line to the next, by the speed that they tell; 0.0 where they do not."""
    rows = run.metrics[-_LINES_LOOKED_AT - 1 :]
    seen, speeds = dict(column(rows, "samples_seen")), dict(column(rows, "samples_per_second"))
    steps = sorted(seen)
    gaps = [
        (seen[step] - seen[before]) / speeds[step]
        for before, step in pairwise(steps)
        if speeds.get(step, 0) > 0
    ]
    return max(0.0, statistics.median(gaps)) if gaps else 0.0


def _left(run: RunFolder, step: int, total: float | None) -> str:
    """How long it will take, by the newest lines."""
    steps = [row["step"] for row in run.metrics[-_LINES_LOOKED_AT - 1 :]]
    gap = _gap(run)
    if total is None or len(steps) < 2 or not gap:
        return ""
    each = gap * (len(steps) - 1) / (steps[-1] - steps[0])
    return f", about {duration(each * (total - step))} left"


def _resume(path: Path) -> str:
    return f"mmtrain train {path} --resume goes on"
