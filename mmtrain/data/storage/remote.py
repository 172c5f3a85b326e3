"""One file in an object store or on a web server, read by ranges."""

import errno
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self, TypeVar

from mmtrain.data.storage.addresses import is_hub, is_web, scheme_of, split_store
from mmtrain.data.storage.busy import BUSY, asked_pause
from mmtrain.data.storage.file import Range, read_joined
from mmtrain.data.storage.patience import BusyError
from mmtrain.data.storage.stores import refuse_fork, store_of
from mmtrain.data.work import COUNTER
from mmtrain.errors import UsageError

if TYPE_CHECKING:
    from obstore import ObjectMeta

Known = tuple[int, str | None]
"""Size and version of a file."""

_GAP = 1 << 18
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true",
    "az": "AZURE_STORAGE_ACCOUNT_KEY or another of Azure's, or AZURE_SKIP_SIGNATURE=true",
}
_STATUS = re.compile(r"status code: (\d{3})")
ReturnT = TypeVar("ReturnT")


class RemoteFile:
    """A file by ranges; each answer is checked against the size and the version it began with.

    Args:
        path: the address.
        known: size and version, where they are known; else the store is asked.
    """

    def __init__(self, path: str, *, known: Known | None = None):
        self.path = path
        self._store, self._name = store_of(path)
        self.size, self.version = told(path, self._look) if known is None else known

    def __reduce__(self) -> tuple[type["RemoteFile"], tuple[str]]:
        return RemoteFile, (self.path,)

    def read(self, offset: int, size: int) -> bytes:
        """See `File.read`."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        return told(self.path, lambda: self._get(offset, size))

    def read_ranges(self, ranges: Sequence[Range]) -> list[memoryview]:
        """See `File.read_ranges`."""
        return read_joined(self, ranges, gap=_GAP)

    def close(self) -> None:
        """Nothing is held open: connections are the client's, which all files share."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _look(self) -> tuple[int, str | None]:
        """Size and version."""
        import obstore

        try:
            meta = obstore.head(self._store, self._name)
        except _client_errors():
            # Some servers refuse HEAD, and its answer to a missing bucket has no reason.
            meta = obstore.get(self._store, self._name, options={"range": (0, 1)}).meta
        return meta["size"], _version(meta)

    def _get(self, offset: int, size: int) -> bytes:
        import obstore

        try:
            answer = obstore.get(
                self._store, self._name, options={"range": (offset, offset + size)}
            )
        except _client_errors() as error:
            if _status(error) == 416:  # it has become shorter
                self._refuse_change(*self._look())
            raise
        self._refuse_change(answer.meta["size"], _version(answer.meta))
        data = bytes(answer.bytes())
        COUNTER.fetched(len(data))
        if len(data) != size:
            raise OSError(errno.EIO, f"{len(data)} bytes came where {size} were asked for")
        return data

    def _refuse_change(self, size: int, version: str | None) -> None:
        if (size, version) != (self.size, self.version):
            raise UsageError(f"{self.path} was changed while it was in use; start again")


def _version(meta: "ObjectMeta") -> str | None:
    """The etag, or when the file was changed; obstore's 1970 is for a server that says neither."""
    changed = meta["last_modified"]
    return meta["e_tag"] or (changed.isoformat() if changed.year > 1970 else None)


def told(path: str, attempt: Callable[[], ReturnT]) -> ReturnT:
    """What `attempt` returns; what the client raises as the OSError that a local file would raise.

    Raises:
        OSError: with an errno, which tells what may pass, and one line that says why.
        UsageError: this process cannot read from a store.
    """
    refuse_fork()
    try:
        return attempt()
    except ValueError as error:
        if not _odd_name(error):
            raise
        raise OSError(*_reason(path, error), path) from error
    except _client_errors() as error:
        number, reason = _reason(path, error)
        if number != errno.EBUSY:
            raise OSError(number, reason, path) from error
        busy = BusyError(number, reason, path)
        busy.pause = asked_pause(path)
        raise busy from error


def _client_errors() -> tuple[type[Exception], ...]:
    """What obstore raises of a store; its missing object is Python's missing file."""
    from obstore.exceptions import BaseError

    return BaseError, FileNotFoundError, NotImplementedError


def _odd_name(error: Exception) -> bool:
    """Whether the client cannot spell a name: it knows no empty parts and no dots for parts."""
    return "path segment" in str(error) or "Could not parse path" in str(error)


def _status(error: Exception) -> int | None:
    found = _STATUS.search(str(error))
    return int(found.group(1)) if found else None


def _reason(path: str, error: Exception) -> tuple[int, str]:
    """An errno and why, in words; never the client's own, which hold addresses and headers."""
    text, status = str(error), _status(error)
    root = split_store(path)[0]
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return errno.ENOENT, f"there is no bucket {root}"
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        wanted = _CREDENTIALS[scheme_of(path)]
        return errno.EACCES, f"no credentials are set; set {wanted} where it is public"
    if status in (401, 403):
        wanted = (
            "HF_TOKEN, and whether it is gated" if is_hub(path) else "the credentials and rights"
        )
        return errno.EACCES, f"the server denies it ({status}); check {wanted}"
    if status == 404 or isinstance(error, FileNotFoundError):
        return errno.ENOENT, "there is no such file" if is_web(path) or is_hub(
            path
        ) else "there is no such object"
    if status in BUSY:
        return errno.EBUSY, f"the server is busy ({status})"
    if isinstance(error, NotImplementedError) or "Range request not supported" in text:
        return errno.EOPNOTSUPP, "the server sends whole files only, not parts of them; copy it"
    if _odd_name(error):
        told = (
            'a name there has an empty part ("//") or one of dots, which cannot be read; rename it'
        )
        return errno.EINVAL, told
    if "redirect" in text:
        return errno.ELOOP, "it is redirected again and again"
    if "dns error" in text:
        return errno.EHOSTUNREACH, "its name is not known to the network"
    if "Connection refused" in text:
        return errno.ECONNREFUSED, "the connection is refused"
    if "operation timed out" in text or "TimedOut" in text or "kind: Timeout" in text:
        return errno.ETIMEDOUT, "the server does not answer in time"
    if status is not None:
        number = errno.EINVAL if 400 <= status < 500 and status not in (408, 416) else errno.EIO
        return number, f"the server answers {status}"
    if "Body" in text or "Interrupted" in text:
        return errno.EIO, "the answer was cut"
    return errno.EIO, os.strerror(errno.ECONNRESET).lower()
