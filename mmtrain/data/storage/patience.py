"""Faults of a disk that pass: what fails is tried again, as long as the user wants to wait."""

import errno
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeGuard, TypeVar

PATIENCE = 10.0
"""Default seconds."""
_FIRST_PAUSE, _BUSY_PAUSE, _LONGEST_PAUSE = 0.1, 1.0, 15.0
_LASTING = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.EBADF, errno.EEXIST),
        *(errno.ENXIO, errno.ENODEV, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTEMPTY),
    }
)
_asked: ContextVar[float] = ContextVar("patience", default=PATIENCE)
ReturnT = TypeVar("ReturnT")


class BusyError(OSError):
    """A server that says it is busy, and for how long."""

    pause = 0.0
    """Seconds that it asks to be left alone; 0: it does not say."""


@contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """Within the context, and what is opened in it, a fault is given so long to pass: whatever a
    command or a run reads has the same patience."""
    token = _asked.set(seconds)
    try:
        yield
    finally:
        _asked.reset(token)


def patience(seconds: float | None = None) -> float:
    """Seconds as given, else those of `waiting`, else the default."""
    return _asked.get() if seconds is None else seconds


def may_pass(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether a fault may go away by itself: a disk's or a network's, not a name's or a right's."""
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _LASTING


def patiently(
    attempt: Callable[[], ReturnT],
    *,
    seconds: float,
    again: Callable[[OSError], bool] = may_pass,
) -> ReturnT:
    """What `attempt` returns, tried again after pauses that double, for `seconds`.

    The pauses differ by chance, so that the processes that met a fault together do not come back
    together; a server that says that it is busy is left alone for a second at least, or for as long
    as it asks.

    Args:
        attempt: reads; leaves nothing open where it fails.
        seconds: until the last attempt; 0: there is one.
        again: whether a fault is worth another attempt.

    Raises:
        OSError: of the last attempt.
    """
    end, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        try:
            return attempt()
        except OSError as error:
            left = end - time.monotonic()
            if left <= 0 or not again(error):
                raise
            if error.errno == errno.EBUSY:
                pause = max(pause, _BUSY_PAUSE)
            asked = error.pause if isinstance(error, BusyError) else 0.0
        time.sleep(min(max(asked, pause) * random.uniform(1.0, 1.5), left))
        pause = min(2 * pause, _LONGEST_PAUSE)
