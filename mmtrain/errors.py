"""How a command ends when it does not end well: the exit statuses, and the errors that have one."""

import json
import os
import time
from enum import IntEnum
from pathlib import Path

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


class ExitStatus(IntEnum):
    """What a process of ours says to the shell, torchrun or the scheduler that started it.

    docs/launch.md has the table for users.
    """

    DONE = 0
    DEFECT = 1  # Python's own for an exception that nobody caught
    FAULTS_FOUND = 1  # grep's and diff's for a look that found something
    MISTAKE = 2
    STOPPED = 75  # sysexits' EX_TEMPFAIL
    HUNG = 76
    WORKER_KILLED = 77
    INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
    BROKEN_PIPE = 141  # 128 + SIGPIPE


class UsageError(ValueError):
    """A user's mistake: one line that names the key, its value and the remedy.

    The command line prints the message alone and exits with 2; anything else that is raised
    is a defect of ours and keeps its traceback.
    """


class FaultsFound(Exception):
    """A check did its work and found faults.

    The command line prints the message alone, one line, and exits with 1.
    """


class WorkerKilledError(RuntimeError):
    """The system killed a process of ours; nobody made a mistake, and starting again may do.

    The command line prints the message alone, one line, and exits with 77.
    """


def on_one_line(text: str) -> str:
    """A name as it can be printed: files are called by what breaks a line or steers a terminal."""
    escaped = (c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if text.isprintable() else "".join(escaped)


def leaves_errors() -> bool:
    """Whether a launcher reads what `leave_error` leaves."""
    return bool(os.environ.get(_ERROR_FILE))


def leave_error(message: str, status: ExitStatus) -> None:
    """Leave a rank's error where torchrun, or slurm.sbatch, looks for it; else nowhere.

    The launcher's own line would say no more than which rank failed. torchrun prints the message
    of the first one, and both can tell a mistake, which a restart only repeats, by the status.
    Where all ranks leave theirs in one file, a mistake is not overwritten by what follows from it.
    """
    path = os.environ.get(_ERROR_FILE)
    if path and (status is ExitStatus.MISTAKE or _mistake_in(Path(path)) is None):
        content = {"message": message, "timestamp": int(time.time()), "status": int(status)}
        Path(path).write_text(json.dumps(content), encoding="utf-8")


def let_rank_0_speak(seconds: float = 5.0) -> None:
    """Wait, as another rank of torchrun's, until the first one on this machine has left its error
    too: torchrun ends all others with the first, and one that ends before has said nothing."""
    path, until = Path(os.environ.get(_ERROR_FILE, "")), time.monotonic() + seconds
    if not path.parent.name.isdecimal() or path.parent.name == "0":
        return  # rank 0, or not torchrun's LOGS/attempt_N/RANK/error.json
    first = path.parent.with_name("0") / path.name
    while not first.exists() and time.monotonic() < until:
        time.sleep(0.05)


def mistake_before_restart() -> str | None:
    """The user's mistake that ended the ranks on this machine before torchrun restarted them.

    torchrun restarts its ranks as often as it may, whatever their exit status was. A rank's error
    file is LOGS/attempt_N/RANK/error.json, and N counts the restarts.
    """
    count = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    attempt = Path(os.environ.get(_ERROR_FILE, "")).parent.parent
    if count == 0 or attempt.name != f"attempt_{count}":
        return None
    left = sorted(attempt.with_name(f"attempt_{count - 1}").glob("*/error.json"))
    return next((message for path in left if (message := _mistake_in(path)) is not None), None)


def _mistake_in(path: Path) -> str | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):  # the rank left none, or was killed as it did
        return None
    is_mistake = isinstance(content, dict) and content.get("status") == ExitStatus.MISTAKE
    return str(content.get("message")) if is_mistake else None
