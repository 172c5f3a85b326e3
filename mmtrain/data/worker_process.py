"""What a worker's process needs: how it is born, which signals it hears, how its end is told."""

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader

from mmtrain.data.storage import stores
from mmtrain.data.work import COUNTER
from mmtrain.errors import ExitStatus, UsageError, WorkerKilledError

SHARED_MEMORY = "/dev/shm"
"""Where batches are handed over."""
_WORKERS_IGNORE = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_MEANS = {
    "SIGKILL": ", as happens where memory is short",
    "SIGBUS": f", as happens where {SHARED_MEMORY} is full or a disk fails",
    "SIGSEGV": ", a fault of a library such as a decoder",
    "SIGABRT": ", a fault of a library such as a decoder",
}


def start_method() -> Any:
    """How workers come to be: forked, or where a fork could not read, from a process of their own.

    That one imports what they need once, so that a worker starts as fast as by a fork.
    """
    if not stores.is_started():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmtrain.data.image_text"])
    return context


def started(loader: Callable[[], DataLoader[Any]], workers: int) -> Any:
    """A loader's iterator, with its workers.

    Raises:
        UsageError: they cannot be started.
    """
    try:
        return iter(loader())
    except OSError as error:
        raise UsageError(
            f"data.workers = {workers}: they cannot be started: {error.strerror} (processes, open "
            f"files, or room in {SHARED_MEMORY}); use fewer"
        ) from error


def killed_by_system(error: RuntimeError, made: Any, workers: int) -> WorkerKilledError | None:
    """That the system killed a worker, if that is what torch says."""
    # A worker's own exception is of its own kind, or begins "Caught RuntimeError".
    if not str(error).startswith("DataLoader worker (pid"):
        return None
    reason = str(error).splitlines()[0].rstrip(". ")
    return WorkerKilledError(
        f"data.workers = {workers}: {reason}{_why_killed(made)}; use fewer workers or a "
        "smaller data.prefetch, and go on with --resume"
    )


def _why_killed(made: Any) -> str:
    """By which signal a worker ended, and what that means."""
    codes = [worker.exitcode for worker in made._workers]
    ended = next((-code for code in codes if code is not None and code < 0), None)
    if ended is None:
        return ""
    name = signal.Signals(ended).name
    return f" (by {name}{_MEANS.get(name, '')})"


def begin(environment: dict[str, str], _: int) -> None:
    """Be a worker, in the main process's environment; its number does not matter."""
    # What was there before is the main process's: looking through it for garbage would copy the
    # pages that a fork shares, in every worker.
    gc.freeze()
    # The process that starts workers may be older than what was set since, such as credentials.
    if os.environ != environment:
        os.environ.clear()
        os.environ.update(environment)
    # A fork has what the main process has, which may collect garbage by itself, and has counted.
    gc.enable()
    COUNTER.restart()
    _leave_signals_to_main()
    main = multiprocessing.parent_process()
    if main is not None and main.pid != os.getppid():
        threading.Thread(target=_end_with, args=(main.sentinel,), daemon=True).start()


def _end_with(main: int) -> None:
    """End when the main process does, however that is.

    torch looks for another parent, as a fork has then. The parent of these is the process that
    starts them, which lives as long as any of them does: without this both wait for ever.
    """
    multiprocessing.connection.wait([main])
    os._exit(ExitStatus.DEFECT)


def _leave_signals_to_main() -> None:
    """Ctrl-C and a scheduler's signals reach all processes of a run; only the main one acts.

    It may want more batches before it stops, and closes the workers when it does. Where it leaves
    while it is given a tensor, the thread that gives it would print a traceback.
    """
    for number in _WORKERS_IGNORE:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _hide_that_main_left


def _hide_that_main_left(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """What surrounds the birth of workers, as far as signals go.

    Signals wait, since workers would act on them until they ignore them. And torch's handler of
    SIGCHLD goes again: it would raise a dead worker's error anywhere in the main process, amid a
    backward pass too, where it is no line of ours; waiting for a batch finds the dead all the same.
    """
    on_child = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WORKERS_IGNORE)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if signal.getsignal(signal.SIGCHLD) is not on_child:
            signal.signal(signal.SIGCHLD, on_child)
