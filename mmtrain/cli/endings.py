"""How a program ends: in one line and with a status, whatever the user or the machine did."""

import errno
import os
import select
import sys
from collections.abc import Callable

from mmtrain.errors import (
    ExitStatus,
    FaultsFound,
    UsageError,
    WorkerKilledError,
    leave_error,
    leaves_errors,
    let_rank_0_speak,
)

_REMEDIES = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some space, or write elsewhere",
    errno.EFBIG: "write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "allow it, or name another place",
    errno.EPERM: "allow it, or name another place",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "mend the links",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "close other programs",
    errno.ENODEV: "name another place",
    errno.EIO: "the disk, or the way to it, is damaged",
    errno.ESTALE: "the network disk has gone; start again",
}
"""What a disk may say to a right program, and what the user can do."""
_LESS_MEMORY = (
    "the memory is too small for this; of a recipe lower train.batch_size or the model's sizes, "
    "raise train.microbatches, or set eval.fast with a small eval.batch_size; to a command give "
    "--fast with a small --batch-size"
)
_OUT_OF_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory")


def end_well(run: Callable[[], int | None], *, name: str) -> int:
    """Run a program and return its exit status.

    A user's mistake, a full disk and too little memory are one line on stderr and status 2; a
    defect of ours keeps its traceback.

    Args:
        run: the program; it may return a status of its own.
        name: what its lines begin with.
    """
    try:
        return _end(run, name)
    except BrokenPipeError:
        if not _let_closed_pipes_be():
            raise
        return ExitStatus.BROKEN_PIPE


def _end(run: Callable[[], int | None], name: str) -> int:
    try:
        return _run_and_flush(run)
    except UsageError as error:
        return _report(name, str(error), ExitStatus.MISTAKE)
    except FaultsFound as found:
        return _report(name, str(found), ExitStatus.FAULTS_FOUND)
    except WorkerKilledError as error:
        return _report(name, str(error), ExitStatus.WORKER_KILLED)
    except KeyboardInterrupt:
        _print_on_rank_0(f"{name}: interrupted")
        return ExitStatus.INTERRUPTED
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        _drop_unwritten()
        told = f"{error.filename or 'the output'}: {os.strerror(error.errno)}"
        return _report(name, f"{told}; {_REMEDIES[error.errno]}", ExitStatus.MISTAKE)
    except (MemoryError, RuntimeError) as error:
        told = str(error).splitlines()[0] if str(error) else ""
        if not isinstance(error, MemoryError) and not any(x in told for x in _OUT_OF_MEMORY):
            raise
        told = f"{told or 'memory is short'}: {_LESS_MEMORY}"
        return _report(name, told, ExitStatus.MISTAKE)


def _run_and_flush(run: Callable[[], int | None]) -> int:
    status = None
    try:
        status = run()
    except SystemExit as error:
        if error.code not in (None, 0):
            raise
    # Here and not at exit, where a closed pipe could no longer be told from success.
    sys.stdout.flush()
    return ExitStatus.DONE if status is None else status


def _report(name: str, message: str, status: ExitStatus) -> ExitStatus:
    """One line in all, however many ranks meet the same error; one that only another rank sees is
    left where the launcher prints it, and printed here where there is no such place."""
    message = " ".join(message.splitlines())
    _print_on_rank_0(f"{name}: error: {message}")
    if (rank := os.environ.get("RANK", "0")) != "0" and not leaves_errors():
        print(f"{name}: rank {rank}: error: {message}", file=sys.stderr)
    leave_error(message, status)
    let_rank_0_speak()
    return status


def _print_on_rank_0(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def _let_closed_pipes_be() -> bool:
    """Whether the reader of our output went away (`mmtrain ... | head`), and not another pipe's,
    such as a data worker's. If so, whatever is still buffered goes nowhere."""
    closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream.fileno())]
    for stream in closed:
        # The interpreter flushes once more at exit and would print a warning.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(closed)


def _drop_unwritten() -> None:
    """Where what was printed cannot be written, send the rest nowhere: the interpreter would try
    once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_closed(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLERR)
    return any(event & select.POLLERR for _, event in poll.poll(0))
