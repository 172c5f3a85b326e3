"""Runs a drawn command in this process and says what is wrong with how it ended."""

import argparse
import contextlib
import io
import os
import re
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from unittest.mock import patch

from mmtrain.cli import build_parser, main
from mmtrain.errors import ExitStatus
from mmtrain.recipe import TrainRecipe
from mmtrain.settings.describe import describe

PATIENCE = 3
"""Seconds after which a case that trains is asked to stop: 10**12 steps are a run too."""
SECONDS = 30
"""What a case may take before it counts as hanging."""
ROOM = 3 << 30
"""Bytes of address space that a case may take beside what the process has."""


class Hang(BaseException):
    """A case took too long."""


def complaint(words: Sequence[str], *, cwd: Path, disk: int | None = None) -> str | None:
    """Run `mmtrain WORDS...` in a folder -> what is wrong with its end; None: nothing.

    Args:
        words: of the command line.
        cwd: the folder.
        disk: bytes of a file at which the disk is full. None: it is not.
    """
    out, err = io.StringIO(), io.StringIO()
    try:
        with _limits(disk, stop=_stop_of(list(words))), _inside(cwd), warnings.catch_warnings():
            warnings.simplefilter("error")
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status: object = main(list(words))
    except SystemExit as error:
        status = 0 if error.code == ExitStatus.STOPPED else f"SystemExit({error.code})"
    except Hang:
        return f"took more than {SECONDS} s\n{traceback.format_exc()}"
    except BaseException:  # whatever it is, a user would see its traceback
        return traceback.format_exc()
    told = [line for line in err.getvalue().splitlines() if line.startswith("mmtrain: error: ")]
    if status == 0 and not told:
        return None
    right = ExitStatus.FAULTS_FOUND if list(words[:2]) == ["data", "check"] else ExitStatus.MISTAKE
    if (
        status not in (right, ExitStatus.MISTAKE)
        or len(told) != 1
        or err.getvalue().splitlines()[-1] != told[0]
    ):
        return f"status {status}, stderr:\n{err.getvalue()}"
    if "Traceback" in err.getvalue():
        return err.getvalue()
    return None if names_something(told[0], words) else f"names nothing to change: {told[0]}"


def names_something(line: str, words: Sequence[str]) -> bool:
    """Whether a message names a key, an option or a file, as a user can find them."""
    said = line.removeprefix("mmtrain: error: ")
    if any(name in said for name in (*_KEYS, *_OPTIONS, *_PLACES, "unknown key ")):
        return True
    if any(
        re.search(rf"\b{re.escape(name)}( = |:| is missing| has |\]|\")", said) for name in _NAMES
    ):
        return True
    if any(word in said.split() or (len(word) > 2 and word in said) for word in words):
        return True
    return any("/" in word or word.endswith((".toml", ".json")) for word in said.split())


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)


_DESCRIBED = [key.name.replace("[]", "") for key in describe(TrainRecipe)]
_TAKEN = [action for action in _actions(build_parser()) if action.dest != "help"]
_KEYS = [name for name in _DESCRIBED if "." in name]
_PLACES = {str(action.metavar) for action in _TAKEN if not action.option_strings}
_NAMES = {name.rpartition(".")[2] for name in _DESCRIBED} | {action.dest for action in _TAKEN}
_OPTIONS = {option for action in _TAKEN for option in action.option_strings}


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """The working directory and the home of a case, in case it writes where it was not told."""
    before, home = Path.cwd(), os.environ.get("HOME")
    os.chdir(folder)
    os.environ["HOME"] = str(folder)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ["HOME"] = home or ""


def _stop_of(words: list[str]) -> signal.Signals:
    """What ends a command that would go on for ever: a server passes a SIGTERM on to the process
    that it is in, here that of the tests."""
    return signal.SIGINT if words[:1] in (["serve"], ["watch"]) else signal.SIGTERM


@contextlib.contextmanager
def _limits(disk: int | None, *, stop: signal.Signals) -> Iterator[None]:
    """Less memory and time than would trouble the machine, and no file of more than `disk`."""

    started = time.monotonic()

    def ring(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - started > SECONDS:
            raise Hang
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            signal.raise_signal(stop)

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    file_soft, file_hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_soft if disk is None else disk, file_hard))
    # pytest-timeout's clock is the same one: it goes on where it was.
    handler = signal.signal(signal.SIGALRM, ring)
    left = signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE)
    try:
        with patch("os.nice"):  # no way back from it, and the next cases would have what is left
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_soft, file_hard))
