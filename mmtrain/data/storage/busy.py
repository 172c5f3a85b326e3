"""How long a server that is busy wants to be left alone: its `Retry-After`.

obstore tells the status of an answer and not its headers, so the server is asked once more, for one
byte; what it says then is what counts anyway.
"""

import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException

from mmtrain.data.storage import hub
from mmtrain.data.storage.addresses import is_hub, is_web
from mmtrain.data.storage.environment import login_headers
from mmtrain.data.storage.stores import store_of

BUSY = (429, 503)
"""The statuses that say so."""
_TIMEOUT = 5.0


def asked_pause(path: str) -> float:
    """Seconds that the server of a remote file asks for; 0 where it asks for none.

    Args:
        path: the address; of a store that cannot sign it, nothing is asked.
    """
    if (asked := _signed(path)) is None:
        return 0.0
    url, headers = asked
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0"})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # for this server alone
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        with error:
            return seconds_of(error.headers.get("Retry-After")) if error.code in BUSY else 0.0
    except (OSError, HTTPException):
        pass  # whoever reads next meets it too
    return 0.0


def _signed(path: str) -> tuple[str, Mapping[str, str]] | None:
    """An address that a plain client may read, and what it must send with it."""
    import obstore
    from obstore.exceptions import BaseError

    if is_hub(path):
        url, token = hub.web_address(path)
        return url, {"Authorization": f"Bearer {token}"} if token else {}
    if is_web(path):
        return path, login_headers(path)
    store, name = store_of(path)
    try:
        return obstore.sign(store, "GET", name, timedelta(minutes=1)), {}  # pyright: ignore
    except (BaseError, ValueError):
        return None


def seconds_of(text: str | None) -> float:
    """What a `Retry-After` asks for: `120`, or a date."""
    if not text:
        return 0.0
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
