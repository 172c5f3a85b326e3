"""A rank that hangs is named by the others, which then end instead of waiting for ever.

Every rank's watchdog thread writes a heartbeat into RUN/heartbeats: a count, the step, and the line
that the main thread is at. Ranks step together, so one that stops soon holds all the others in a
collective; they look at each other's heartbeats then. A process that was stopped, or whose machine
is gone, no longer counts; one that lives but does not get on is the one that finished fewer steps.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import mmtrain
from mmtrain.errors import ExitStatus, leave_error
from mmtrain.files import parse_json, replace_file
from mmtrain.parallel.flight import write_collectives
from mmtrain.ranks import on_every_rank

_FOLDER = "heartbeats"
_COLLECTIVES = "collectives-"
"""And a rank's number: the names that torchfrtrace wants."""
_HOUSE = Path(mmtrain.__file__).parent


@dataclass(frozen=True)
class Heartbeat:
    """What a rank tells the others."""

    count: int
    """Grows while the process lives."""
    progress: int
    """Grows with every step that the main thread finishes."""
    step: int
    busy: str
    """What takes the main thread long and is not a step, such as an evaluation; else empty."""
    where: str
    """The line of ours that the main thread is at."""
    host: str
    process: int


class Watchdog:
    """Within the context, watches that this rank and all others get on.

    Args:
        run_dir: on a file system that all ranks share.
        seconds: the run ends when for so long no step was finished, or a process did not answer;
            None: never.
        rank: this one.
        world_size: of the run; a single process has nobody to be named by.
        leave: ends this process; the main thread sits in a collective and cannot.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        seconds: float | None,
        rank: int,
        world_size: int,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._folder, self._on = run_dir / _FOLDER, seconds is not None and world_size > 1
        self._seconds = seconds or 0.0
        self._rank, self._world_size, self._leave = rank, world_size, leave
        self._interval = min(self._seconds / 10, 15.0)
        self._main, self._stop = threading.get_ident(), threading.Event()
        self._count, self._progress, self._step, self._busy = 0, 0, 0, ""
        self._last = time.monotonic()
        self._seen: dict[int, tuple[Heartbeat | None, float]] = {}
        """Of each rank the newest heartbeat and when its count was first seen here."""
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._on:
            on_every_rank(self._begin)
            self._thread.start()
        return self

    def _begin(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._write()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._on:
            self._stop.set()
            self._thread.join()

    def beat(self, step: int) -> None:
        """The main thread has finished a step."""
        self._step, self._progress = step, self._progress + 1
        self._last = time.monotonic()

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Within the context no step is expected; that every process answers still is."""
        self._busy = what
        try:
            yield
        finally:
            self._busy, self._last = "", time.monotonic()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._write()
            # Nothing is compared before the first step: starting up takes what it takes.
            waited = time.monotonic() - self._last
            if self._progress == 0 or waited < self._seconds / 4:
                self._seen.clear()
                continue
            self._look()
            if (complaint := self._complaint(waited)) is not None and not self._stop.is_set():
                self._end(*complaint)

    def _write(self) -> None:
        self._count += 1
        beat = Heartbeat(
            count=self._count,
            progress=self._progress,
            step=self._step,
            busy=self._busy,
            where=_where(self._main),
            host=socket.gethostname(),
            process=os.getpid(),
        )
        replace_file(self._path(self._rank), json.dumps(asdict(beat)))

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"

    def _look(self) -> None:
        now = time.monotonic()
        for rank in range(self._world_size):
            try:
                beat = Heartbeat(**parse_json(self._path(rank).read_bytes()))
            except OSError:  # never written, or the disk is gone: as silent as one that stopped
                beat = None
            before = self._seen.get(rank)
            if before is None or (beat is not None and beat != before[0]):
                self._seen[rank] = (beat, now)

    def _complaint(self, waited: float) -> tuple[list[int], str] | None:
        """The ranks that hang and what to say of them; None while there is hope."""
        now = time.monotonic()
        silent = [r for r, (_, since) in self._seen.items() if now - since > 0.75 * self._seconds]
        if silent:
            return silent, f"{self._name(silent[0])} has not answered for {waited:.0f} s"
        beats = [beat for beat, _ in self._seen.values() if beat is not None]
        if waited < self._seconds or any(beat.busy for beat in beats):
            return None
        if any(now - since > 3 * self._interval for _, since in self._seen.values()):
            return None  # one misses its beats: soon it is known whether it answers at all
        least = min(beat.progress for beat in beats)
        behind = [r for r, (b, _) in self._seen.items() if b is not None and b.progress == least]
        if len(behind) == self._world_size:
            text = f"no rank has finished a step for {waited:.0f} s, such as {self._name(0)}"
        else:
            text = f"{self._name(behind[0])} has not finished a step for {waited:.0f} s"
        return behind, text

    def _name(self, rank: int) -> str:
        beat = self._seen[rank][0]
        if beat is None:
            return f"rank {rank}"
        doing = f" {beat.busy}" if beat.busy else ""
        return (
            f"rank {rank} (host {beat.host}, process {beat.process}, at step {beat.step}{doing} in "
            f"{beat.where})"
        )

    def _end(self, hung: list[int], text: str) -> None:
        """Say it once, leave this rank's stacks and collectives on disk, and end the process."""
        more = f" (and {len(hung) - 1} more ranks)" if 1 < len(hung) < self._world_size else ""
        stacks = self._path(self._rank).with_suffix(".stacks.txt")
        with stacks.open("w", encoding="utf-8") as stream:
            faulthandler.dump_traceback(stream)
        waits = write_collectives(self._folder / f"{_COLLECTIVES}{self._rank}")
        left = f"where the others were: {self._folder}/*.stacks.txt"
        if waits is not None:
            left += f"; rank {self._rank} waits in {waits}: torchfrtrace -p {_COLLECTIVES} "
            left += f"{self._folder} compares the ranks"
        message = (
            f"{text}{more}; train.hang_minutes = {self._seconds / 60:g} ends the run, go on with "
            f"--resume ({left})"
        )
        speaker = min(set(range(self._world_size)) - set(hung), default=0)
        if self._rank == speaker:
            print(f"mmtrain: error: {message}", file=sys.stderr, flush=True)
        leave_error(message, ExitStatus.HUNG)
        self._leave(ExitStatus.HUNG)


def _where(thread: int) -> str:
    """The innermost line of mmtrain that a thread is at."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_HOUSE):
            return f"mmtrain/{path.relative_to(_HOUSE)}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "no line of mmtrain"
