"""How far a long command is, on the terminal or in a log."""

import sys
import time

_SECONDS = 5.0


class Progress:
    """Says how far it is, at most every few seconds.

    Args:
        what: is counted.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._told = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        if time.monotonic() - self._told > _SECONDS:
            print(f"{done:,} of {of:,} {self._what}", file=sys.stderr, flush=True)
            self._told = time.monotonic()
