"""A run's progress on the console: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import TextIO

from mmtrain.progress import live_bar

Record = Mapping[str, float]
"""The numbers of a step: step, epoch, samples_seen, loss, lr, grad_norm, logit_scale,
samples_per_second, data_wait_fraction, and whatever else a loop measures."""


class LiveConsole:
    """One progress line, redrawn in place."""

    def __init__(self, stream: TextIO, total_steps: int, start_step: int) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("eta"),
            TimeRemainingColumn(),
        )
        self._progress = live_bar(columns, stream)
        self._task = self._progress.add_task(
            "train", total=total_steps, completed=start_step, numbers=""
        )
        self._progress.start()

    def show(self, record: Record) -> None:
        """Move on to the record's step."""
        self._progress.update(self._task, completed=record["step"], numbers=_numbers(record))

    def say(self, text: str) -> None:
        """A line that stays."""
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the last state on screen."""
        self._progress.stop()


class PlainConsole:
    """A line for each record: for files, pipes and continuous integration."""

    def __init__(self, stream: TextIO, total_steps: int, start_step: int) -> None:
        self._stream = stream
        self._total_steps = total_steps
        self._start = (time.monotonic(), start_step)

    def show(self, record: Record) -> None:
        start_time, start_step = self._start
        step = int(record["step"])
        left = (
            (time.monotonic() - start_time) / max(1, step - start_step) * (self._total_steps - step)
        )
        minutes, seconds = divmod(round(left), 60)
        eta = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        self.say(f"step {step}/{self._total_steps}  {_numbers(record)}  eta {eta}")

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is left on screen."""


def build_console(stream: TextIO, total_steps: int, start_step: int) -> LiveConsole | PlainConsole:
    """What suits the stream; steps count from `start_step` on a resume."""
    if stream.isatty():
        return LiveConsole(stream, total_steps, start_step)
    return PlainConsole(stream, total_steps, start_step)


def _numbers(record: Record) -> str:
    """The part of a record that the console shows."""
    forms = {
        "phase": "phase {:.0f}",
        "loss": "loss {:.4f}",
        "samples_per_second": "{:,.0f} samples/s",
        "mfu": "MFU {:.1%}",
        "hfu": "HFU {:.1%}",
        "data_wait_fraction": "data wait {:.0%}",
        "data_batch_ms_p99": "batch in {:,.0f} ms",
    }
    return "  ".join(form.format(record[key]) for key, form in forms.items() if key in record)
