"""A run's sealed checkpoints, sent to another place while it goes on: run.mirror.

A thread of rank 0 looks for the newest sealed checkpoint and sends it, with the run's other files.
It holds the files by links of its own, so that a checkpoint that the run drops meanwhile still gets
there whole. What fails is told and tried again; training neither waits for it nor ends by it.
"""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mmtrain.checkpoint.sealed_folder import CHECKPOINTS, MANIFEST_FILE, steps_in
from mmtrain.data.storage.place import Place
from mmtrain.train.copy_checkpoints import prune_copies, push_checkpoint
from mmtrain.train.copy_files import push_files

_HELD = ".mirror"
_LOOKS_EVERY = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 120.0


class Mirror:
    """The thread that sends; of rank 0 alone.

    Args:
        place: where to.
        run: the run's folder.
        keep: how many sealed checkpoints stay there, as `train.keep_checkpoints`.
        say: gets a line for what failed, once for each reason, and when it went well again.
    """

    def __init__(self, place: Place, run: Path, *, keep: int, say: Callable[[str], object]) -> None:
        self._place, self._run, self._keep, self._say = place, run, keep, say
        self._step, self._bytes, self._failures = 0, 0, 0
        self._told: str | None = None
        self._failed: str | None = None
        self._ending, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="mirror", daemon=True)
        self._thread.start()

    def figures(self) -> dict[str, float]:
        """For a line of metrics.jsonl: the newest step that is there (0: none that this process
        has sent), bytes sent, attempts that failed."""
        return {
            "mirror_step": self._step,
            "mirror_bytes": self._bytes,
            "mirror_failures": self._failures,
        }

    def finish(self, *, seconds: float) -> str | None:
        """Wait until the newest checkpoint, and the run's files as they are now, are there.

        Args:
            seconds: how long at most.

        Returns:
            Why they are not; None: they are.
        """
        self._ending.set()
        self._thread.join(seconds)
        late = self._thread.is_alive()
        self.close()
        if not late:
            return None
        return self._failed or f"it takes longer than {seconds / 60:g} minutes"

    def close(self) -> None:
        """Begin nothing more; what is half sent is not sealed."""
        self._closing.set()

    @property
    def behind(self) -> bool:
        """Whether a sealed checkpoint is not there yet."""
        return max(self._sealed(), default=0) > self._step

    def _send_all(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closing.is_set():
            ends = self._ending.is_set()
            try:
                self._send_newest(ends=ends)
            except Exception as error:  # whatever it is, it must not end the training
                self._tell(error)
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            if ends and not self.behind:
                break
            self._rest(_LOOKS_EVERY)
        shutil.rmtree(self._run / _HELD, ignore_errors=True)

    def _rest(self, seconds: float) -> None:
        """Wait, but not into the end: that is looked at once more at once."""
        end, began = time.monotonic() + seconds, self._ending.is_set()
        while time.monotonic() < end and not self._closing.is_set():
            if self._ending.is_set() and not began:
                return
            self._closing.wait(0.1)

    def _send_newest(self, *, ends: bool) -> None:
        sealed = self._sealed()
        step = max(sealed, default=0)
        if step <= self._step:
            if ends:
                self._bytes += push_files(self._run, self._place)
                self._well()
            return
        held = self._hold(sealed[step])
        if held is None:  # dropped by the run as it was looked at: there is a newer one
            return
        self._bytes += push_files(self._run, self._place)
        self._bytes += push_checkpoint(held, self._place, replaces=True)
        self._step = step
        shutil.rmtree(self._run / _HELD, ignore_errors=True)
        prune_copies(self._place, keep=self._keep)
        self._well()

    def _sealed(self) -> dict[int, Path]:
        found = steps_in(self._run / CHECKPOINTS)
        return {step: path for step, path in found.items() if (path / MANIFEST_FILE).exists()}

    def _hold(self, path: Path) -> Path | None:
        """The checkpoint by links of our own; None: it is gone; itself where there are no links."""
        held = self._run / _HELD / path.name
        shutil.rmtree(held.parent, ignore_errors=True)
        try:
            held.mkdir(parents=True)
            for file in path.iterdir():
                os.link(file, held / file.name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            return path
        return held if path.exists() else None

    def _tell(self, error: Exception) -> None:
        self._failures += 1
        known = isinstance(error, OSError | ValueError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.filename or self._place.named}: {error.strerror}"
        self._failed = reason
        if reason != self._told:
            self._say(f"run.mirror: not sent yet, tried again: {reason}")
            self._told = reason

    def _well(self) -> None:
        if self._told is not None:
            self._say(f"run.mirror: step {self._step} is at {self._place.named} now")
        self._told = self._failed = None
