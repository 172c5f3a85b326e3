"""Processes of one machine that would all make the same thing: one makes it, the others wait."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock_of_machine(what: str) -> Iterator[None]:
    """Within it, no other process of this user and machine is in it with the same `what`.

    The kernel frees it with the process, however that ends; the empty file that stays in the folder
    of temporary files means nothing.
    """
    digest = hashlib.blake2b(os.fsencode(what), digest_size=8).hexdigest()
    path = Path(tempfile.gettempdir()) / f"mmtrain-{os.getuid()}-{digest}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield  # it saves work, and nothing is wrong without it
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
