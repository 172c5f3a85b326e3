"""The one way to open a file, whatever its path says."""

import contextlib
from contextlib import AbstractContextManager

from mmtrain.data.storage.addresses import is_remote, local_path
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.cached import CachedFile
from mmtrain.data.storage.file import File, LocalFile
from mmtrain.data.storage.read_ahead import ReadAhead
from mmtrain.data.storage.remote import Known, RemoteFile


def open_file(path: str, *, known: Known | None = None, cache: Cache | None = None) -> File:
    """A file of this machine, of an object store or of a web server.

    Args:
        path: where it is.
        known: size and version of a remote file, where they are known; a version of None tells
            nothing.
        cache: keeps what is fetched of a remote file, if that has a version.

    Raises:
        OSError: it cannot be opened, with an errno as a local file's.
        UsageError: what reads it is not installed.
    """
    if not is_remote(path):
        return LocalFile(local_path(path))
    is_known = known is not None and known[1] is not None
    file = RemoteFile(path, known=known if is_known else None)
    return file if cache is None or file.version is None else CachedFile(file, cache)


def open_to_scan(
    file: File, *, seconds: float, cache: Cache | None = None
) -> AbstractContextManager[File]:
    """An open file for reading nearly all of it: a remote one in large pieces.

    Args:
        file: stays open when this is left.
        seconds: how long a fault of a piece is given to pass.
        cache: keeps what is read, where most of each file will be read again.
    """
    if not is_remote(file.path):
        return contextlib.nullcontext(file)
    if cache is not None and cache.whole and file.version is not None:
        file = CachedFile(file, cache)
    return ReadAhead(file, seconds=seconds)
