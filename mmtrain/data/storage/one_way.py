"""Files that come from their beginning only: a command's output, a server that knows no ranges.

Each is taken whole into a file of this machine. What broke off is taken anew, from its beginning,
since nothing else can be asked for.
"""

import errno
import shutil
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from webdataset.gopen import gopen

from mmtrain.data.storage.addresses import is_web
from mmtrain.data.storage.busy import BUSY, seconds_of
from mmtrain.data.storage.environment import login_headers
from mmtrain.data.storage.patience import BusyError

_STALL = 10.0
"""Seconds without a byte after which a server is given up."""
_PIECE = 1 << 20
_LASTING = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT}


def take_whole(url: str, place: Path) -> None:
    """Write all that an address or a `pipe:` gives into a file.

    Raises:
        OSError: it cannot be had, with an errno that tells whether that may pass.
    """
    if is_web(url):
        _take_web(url, place)
        return
    try:
        with gopen(url, "rb") as stream, place.open("wb") as file:
            shutil.copyfileobj(stream, file, _PIECE)
    except OSError as error:
        if error.errno is not None:
            raise
        told = str(error).rpartition(": ")[2]  # the command is in front of it
        raise OSError(errno.EIO, told) from error


def _take_web(url: str, place: Path) -> None:
    request = urllib.request.Request(url)
    for name, value in login_headers(url).items():
        request.add_unredirected_header(name, value)  # for this server alone
    try:
        with urllib.request.urlopen(request, timeout=_STALL) as answer, place.open("wb") as file:
            shutil.copyfileobj(answer, file, _PIECE)
            if answer.length:  # of what was announced
                raise OSError(errno.EIO, f"it broke off with {answer.length:,} bytes missing")
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(error) from error
    except TimeoutError as error:
        raise OSError(errno.ETIMEDOUT, f"not a byte for {_STALL:g} s") from error
    except urllib.error.URLError as error:
        raise _unreached(error.reason) from error
    except HTTPException as error:
        raise OSError(errno.EIO, f"it broke off ({type(error).__name__})") from error


def _refused(error: urllib.error.HTTPError) -> OSError:
    told = f"{error.code} {error.reason}"
    if error.code in BUSY:
        busy = BusyError(errno.EBUSY, told)
        busy.pause = seconds_of(error.headers.get("Retry-After"))
        return busy
    lasting = errno.EINVAL if error.code < 500 else errno.EIO
    return OSError(_LASTING.get(error.code, lasting), told)


def _unreached(reason: Any) -> OSError:
    """Of a server: its own number where that is the system's, as that of a name is not."""
    number = reason.errno if isinstance(reason, OSError) else None
    known = number if number in errno.errorcode else errno.EIO
    if isinstance(reason, TimeoutError):
        known = errno.ETIMEDOUT
    return OSError(known, getattr(reason, "strerror", None) or str(reason))
