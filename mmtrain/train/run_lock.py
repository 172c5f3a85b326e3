"""One writer for a run folder: a lock of the kernel's, which dies with its owner."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.files import parse_json
from mmtrain.ranks import on_rank_0, own_rank

LOCK_FILE = ".lock"
LEASE_SECONDS = 120
"""How long a file server may keep the lock of a machine that is gone; NFS 4's default is 90."""
_WRITES_WITHIN = 1.0
"""Seconds from a lock that is taken to the name of its owner."""


class RunLock:
    """Within the context, this process and its ranks alone write into a run folder. Collective.

    A record lock (fcntl) and not flock: forked data workers do not inherit it, so that it is gone
    with the process, however that ended, even where they outlive it. The file is there to be locked
    and to say who has it; one that a killed process left refuses nobody.

    Args:
        folder: made where it is not there; if nothing came into it, it goes again at the end.
        named: how the user named it, for messages.
        say: gets a line where nothing is wrong but the user should know.
        patience: seconds to wait for a holder on another machine. A job that was moved meets the
            lock of its own machine that is gone until the file server gives it up.

    Raises:
        UsageError: on every rank, another process has it, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        named: str,
        say: Callable[[str], object],
        patience: float = 0.0,
    ) -> None:
        self._folder, self._path = folder, folder / LOCK_FILE
        self._named, self._say, self._patience = named, say, patience
        self._descriptor: int | None = None
        self._made_folder = False

    def __enter__(self) -> "RunLock":
        on_rank_0(self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if own_rank() == 0:
            self._give()

    def _take(self) -> None:
        try:
            self._wait()
        except OSError as error:
            self._give()
            raise UsageError(
                f"{self._named} cannot be written ({error.strerror}); free space, see who may "
                "write there, or choose another folder"
            ) from error

    def _wait(self) -> None:
        deadline, is_told = time.monotonic() + self._patience, False
        while not self._try():
            if (holder := _read_holder(self._path)) is None:
                continue
            who = f"process {holder['process']} on {holder['host']}, since {holder['since']}"
            if holder["host"] == socket.gethostname() or time.monotonic() >= deadline:
                raise UsageError(
                    f"{self._named}: another process is writing into it ({who}); wait until it "
                    "ends, or choose another folder"
                )
            if not is_told:
                self._say(
                    f"{self._named}: another process is writing into it ({who}); waiting up to "
                    f"{self._patience:.0f} s, in case that machine is gone"
                )
            is_told = True
            time.sleep(1)

    def _try(self) -> bool:
        """Whether the lock is ours, or nobody's since there are none."""
        try:
            descriptor = self._open()
        except FileNotFoundError:  # another process has removed the folder that it had made
            descriptor = self._open()
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            self._path.unlink(missing_ok=True)
            self._say(
                f"{self._named}: its file system has no locks ({error.strerror}), so nothing stops "
                "a second process from writing into it"
            )
            return True
        if not _is_file_at(descriptor, self._path):  # its last owner removed it meanwhile
            os.close(descriptor)
            return self._try()
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_ourselves()).encode(), 0)
        os.fsync(descriptor)  # else another machine would read nothing as long as we hold it
        return True

    def _open(self) -> int:
        self._made_folder = self._made_folder or not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)

    def _give(self) -> None:
        if self._descriptor is not None:
            # Still locked: whoever opened it meanwhile sees that it is gone, and takes a new one.
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None
        if self._made_folder:
            with suppress(OSError):  # something came into it, perhaps another process's lock
                self._folder.rmdir()


def _ourselves() -> dict[str, Any]:
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": now}


def _read_holder(path: Path) -> dict[str, Any] | None:
    """Who has the lock; None: it has given it up."""
    unknown, found = dict.fromkeys(_ourselves(), "unknown"), None
    end = time.monotonic() + _WRITES_WITHIN
    while not isinstance(found, dict) and time.monotonic() < end:
        try:
            found = parse_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # it took it just now, and has not yet written
            time.sleep(0.02)
    return unknown | found if isinstance(found, dict) else unknown


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
