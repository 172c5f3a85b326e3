"""How far a long job is: a live line on a terminal, a plain one every few seconds elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_SECONDS = 5.0
"""Between plain lines; what is over before says nothing."""


class Progress:
    """Says how far it is, on stderr, so that what a command prints can be piped.

    Called with how many of a thing are done, of how many. A context: its end, an error's too, takes
    the live line away.

    Args:
        what: is counted.
        quiet: say nothing.
        stream: in place of stderr.
    """

    def __init__(self, what: str, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._what, self._quiet = what, quiet
        self._stream = stream or sys.stderr
        self._told = time.monotonic()
        self._bar: Bar | None = None

    def __call__(self, done: int, of: int) -> None:
        if self._quiet:
            return
        if self._stream.isatty():
            self._show(done, of)
        elif time.monotonic() - self._told > _SECONDS:
            print(f"{done:,} of {of:,} {self._what}", file=self._stream, flush=True)
            self._told = time.monotonic()

    def _show(self, done: int, of: int) -> None:
        if done >= of:
            self.close()
            return
        if self._bar is None:
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn(f"{{task.completed:,}} of {{task.total:,}} {self._what}"),
                BarColumn(bar_width=None),
                TimeRemainingColumn(),
            )
            self._bar = live_bar(columns, self._stream, transient=True)
            self._bar.add_task(self._what, total=of)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=of)

    def close(self) -> None:
        """Take the live line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def live_bar(columns: Sequence[Any], stream: TextIO, *, transient: bool = False) -> "Bar":
    """rich's line of some columns, which keeps what is printed meanwhile above itself.

    But for what is printed into a pipe or a file, which rich would bring to the terminal.

    Args:
        columns: rich's, or their formats.
        stream: a terminal.
        transient: nothing of it stays behind.
    """
    from rich.console import Console
    from rich.progress import Progress as Bar

    return Bar(
        *columns,
        console=Console(file=stream),
        transient=transient,
        expand=True,
        # Over its last thousand updates: rich's 30 s may hold one alone, which tells no speed.
        speed_estimate_period=math.inf,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )


def speaker(quiet: bool) -> Callable[[str], None]:
    """What tells of a job that goes well: `print`, or, of a quiet one, nothing does."""
    return (lambda _: None) if quiet else partial(print, flush=True)
