"""How many bytes a folder may have: one number for all that read through it at once.

Who opened it for less would else drop what another one has fetched for more. The number is kept in
the folder, so a command that names none takes what a run before it was given.
"""

import fcntl
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from mmtrain.errors import UsageError

GB = 10**9
_BOUND = ".bound"


class Bound(NamedTuple):
    """What was agreed on, as long as the descriptor is open."""

    max_bytes: int
    """Of all files in the folder."""
    descriptor: int
    """Holds it; copies of it in forks do too."""


class OtherBoundError(Exception):
    """Another number holds."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"{max_bytes}")
        self.max_bytes = max_bytes


def make_folder(folder: Path, max_bytes: int, prefix: str) -> None:
    """Make the folder of a cache.

    Args:
        folder: where.
        max_bytes: that it is to hold.
        prefix: of the settings' names, for messages.

    Raises:
        UsageError: it cannot be written, or its disk is smaller than `max_bytes`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(folder).total
    except OSError as error:
        raise unwritable(folder, error, prefix) from error
    if max_bytes > room:
        raise UsageError(
            f"{prefix}cache_gb = {max_bytes / GB:g} is more than the disk of {folder} has "
            f"({room / GB:.1f}); use less"
        )


def unwritable(folder: Path, error: OSError, prefix: str) -> UsageError:
    """What a user is told of a folder that cannot be used."""
    return UsageError(
        f"{prefix}cache_dir = {folder} cannot be written ({error.strerror}); name a folder that "
        "can, or leave it out"
    )


def agree(folder: Path, *, asked: int | None, standard: int) -> Bound:
    """The bytes that hold from now on, for as long as anybody has the folder open.

    Args:
        folder: which is there.
        asked: bytes that somebody wants; None: whatever holds, or held last.
        standard: where nothing ever did.

    Raises:
        OtherBoundError: others are reading through it by another number.
        OSError: the folder cannot be written.
    """
    descriptor = os.open(folder / _BOUND, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            _write(descriptor, asked or _read(descriptor) or standard)
        # From the sole lock to a shared one is no single step: what holds is read behind it.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        holds = _read(descriptor) or standard
        if asked not in (None, holds):
            raise OtherBoundError(holds)
    except BaseException:
        os.close(descriptor)
        raise
    return Bound(holds, descriptor)


def _read(descriptor: int) -> int:
    """0 where there is none."""
    text = os.pread(descriptor, 32, 0)
    return int(text) if text.isdigit() else 0


def _write(descriptor: int, max_bytes: int) -> None:
    text = str(max_bytes).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)
