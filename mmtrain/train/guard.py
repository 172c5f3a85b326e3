"""What can go wrong inside a step: numbers that are not finite, and being told to stop.

All ranks decide alike: one all-reduce a step agrees on both (flags.py).
"""

import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType

from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.ranks import gather, own_rank
from mmtrain.train.flags import Said
from mmtrain.train.run_folder import BAD_BATCHES_FILE


class TrainingStopped(UsageError):
    """The run cannot go on: too many steps in a row had no finite loss or gradient."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What all ranks do after a step."""

    update: bool = True
    """Loss and gradient norm were finite everywhere: the update was applied."""
    stop: bool = False
    """A rank was told to stop: save, then leave with exit status 75."""
    overflow: bool = False
    """Only the scaled gradients were not finite: the loss scale was lowered. No bad step."""
    save: bool = False
    """A rank's clock says that a checkpoint is due."""
    roll_back: bool = False
    """Too many steps in a row were refused: go back to the weights before them."""
    save_failed: bool = False
    """A rank knows that the checkpoint in the background could not be written."""

    def __or__(self, other: "Verdict") -> "Verdict":
        """What is to be done after both."""
        return Verdict(
            update=self.update and other.update,
            stop=self.stop or other.stop,
            overflow=self.overflow or other.overflow,
            save=self.save or other.save,
            roll_back=self.roll_back or other.roll_back,
            save_failed=self.save_failed or other.save_failed,
        )


class StopSignals:
    """Within the context, SIGTERM, SIGUSR1 and a first SIGINT raise a flag instead of ending the
    process.

    Schedulers send the former some time before they kill; the latter is ctrl-C, and a second one
    interrupts at once. Forked children (data workers) keep the default behaviour, so that they can
    still be ended.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._owner = os.getpid()
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        self._owner = os.getpid()
        self._previous = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # pyright: ignore[reportArgumentType]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


class Guard:
    """Judges steps: counts updates that were held back, since they were not finite, and names them.

    Args:
        run_dir: where bad_batches.jsonl collects the keys of refused batches.
        max_bad_steps: refused steps in a row that are too many.
        roll_back: then ask for it, instead of ending the run.
        signals: asked at every step; None: nothing stops the run from outside.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        max_bad_steps: int = 3,
        roll_back: bool = False,
        signals: StopSignals | None = None,
    ) -> None:
        if max_bad_steps < 1:
            raise UsageError(f"train.max_bad_steps = {max_bad_steps} must be at least 1")
        self.path = run_dir / BAD_BATCHES_FILE
        self.max_bad_steps = max_bad_steps
        self.roll_back = roll_back
        self.signals = signals
        self.bad_in_a_row = 0

    @property
    def told_to_stop(self) -> bool:
        """Whether this process was."""
        return self.signals is not None and self.signals.received is not None

    @property
    def is_patient(self) -> bool:
        """Whether a step may be judged a step late: not the one that could be one too many."""
        return self.bad_in_a_row < self.max_bad_steps - 1

    def judge(
        self, said: Said, *, loss: Tensor, grad_norm: Tensor, step: int, keys: Sequence[str]
    ) -> Verdict:
        """Look at a step whose update the device has applied, or held back. Collective over all
        ranks, and in the order of the steps.

        Args:
            said: by all ranks.
            loss: this rank's, a scalar; named in the file if the step was refused.
            grad_norm: the norm before clipping, a scalar; likewise.
            step: number of updates done before it.
            keys: this rank's samples, named in the file if the step was refused.

        Raises:
            TrainingStopped: on every rank, after `max_bad_steps` refused steps in a row without
                `roll_back`.
        """
        wishes = Verdict(
            stop=said.wishes.stop, save=said.wishes.save, save_failed=said.wishes.save_failed
        )
        if said.overflow:
            return replace(wishes, update=False, overflow=True)
        bad = said.bad_loss or said.bad_norm
        self.bad_in_a_row = self.bad_in_a_row + 1 if bad else 0
        if bad:
            self._record(loss, grad_norm, step=step, keys=keys)
        roll_back = self.bad_in_a_row >= self.max_bad_steps
        if roll_back:
            self.bad_in_a_row = 0
        return replace(wishes, update=not bad, roll_back=roll_back)

    def _record(self, loss: Tensor, grad_norm: Tensor, *, step: int, keys: Sequence[str]) -> None:
        # Ranks of one data coordinate hold the same rows: dict.fromkeys names them once.
        all_keys = list(dict.fromkeys(key for part in gather(tuple(keys)) for key in part))
        loss_value, norm_value = (_worst(gather(float(value))) for value in (loss, grad_norm))
        if own_rank() == 0:
            record = {"step": step, "loss": loss_value, "grad_norm": norm_value, "keys": all_keys}
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        if self.bad_in_a_row >= self.max_bad_steps and not self.roll_back:
            raise TrainingStopped(
                f"train.max_bad_steps = {self.max_bad_steps} steps in a row had no finite loss and "
                f"gradient (step {step}: loss {loss_value}, gradient norm {norm_value}); their "
                f"samples are named in {self.path}; lower optim.lr, lengthen the warm-up, remove "
                'those samples, or set train.on_bad_steps = "roll_back"'
            )


def _worst(values: list[float]) -> float | str:
    """A value that is not finite, as text since JSON has none, or else the first."""
    bad = [value for value in values if not math.isfinite(value)]
    return str(bad[0]) if bad else values[0]
