"""The one way to open a file, whatever its path says."""

import contextlib
from contextlib import AbstractContextManager

from mmtrain.data.storage.addresses import is_remote, local_path
from mmtrain.data.storage.file import File, LocalFile
from mmtrain.data.storage.read_ahead import ReadAhead
from mmtrain.data.storage.remote import RemoteFile


def open_file(path: str) -> File:
    """A file of this machine, of an object store or of a web server.

    Raises:
        OSError: it cannot be opened, with an errno as a local file's.
        UsageError: what reads it is not installed.
    """
    return RemoteFile(path) if is_remote(path) else LocalFile(local_path(path))


def open_to_scan(file: File, *, seconds: float) -> AbstractContextManager[File]:
    """An open file for reading nearly all of it: a remote one in large pieces.

    Args:
        file: stays open when this is left.
        seconds: how long a fault of a piece is given to pass.
    """
    if not is_remote(file.path):
        return contextlib.nullcontext(file)
    return ReadAhead(file, seconds=seconds)
