"""Clients of object stores and web servers, one a process for each, by obstore.

What they need to know beside an address is in environment.py.
"""

import os
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmtrain.data.storage import hub
from mmtrain.data.storage.addresses import SCHEMES, is_hub, is_web, scheme_of, split_store
from mmtrain.data.storage.environment import endpoint, login_headers, store_options
from mmtrain.errors import UsageError
from mmtrain.settings.paths import mask_secrets

if TYPE_CHECKING:
    from obstore.store import ObjectStore

READ_TIMEOUT = "10s"
"""A server that sends nothing for this long has stalled; the read is then tried again."""
WRITE_TIMEOUT = "2m"
"""A part of a file that is not sent and answered within this is sent again."""
_process = 0


def store_of(path: str) -> tuple["ObjectStore", str]:
    """The client for a remote path and the path's name in there.

    Raises:
        UsageError: obstore is missing, or this process cannot use it.
    """
    refuse_fork()
    if is_hub(path):
        where, token = hub.web_address(path)
        return _store(where, token=token), ""
    if is_web(path):
        # The whole address is the client's root: obstore would escape a query in a name.
        return _store(path), ""
    root, key = split_store(path)
    return _store(root), key


def store_to_write(root: str) -> "ObjectStore":
    """A client for `s3://bucket` that files are sent by.

    Raises:
        UsageError: obstore is missing, or this process cannot use it.
    """
    refuse_fork()
    return _store(root, writes=True)


def is_started() -> bool:
    """Whether this process has used a store: its forks then cannot, for want of its threads."""
    return _process == os.getpid()


def refuse_fork() -> None:
    """obstore's threads are not there in a fork: it would wait for them for ever.

    Raises:
        UsageError: this process was forked off one that had used a store.
    """
    global _process
    if _process not in (0, os.getpid()):
        raise UsageError(
            "a process that used an object store was forked, and its copies cannot read from it; "
            'start them with the method "forkserver" or "spawn"'
        )
    _process = os.getpid()


@lru_cache(maxsize=4096)
def _store(root: str, *, writes: bool = False, token: str | None = None) -> "ObjectStore":
    try:
        from obstore import exceptions, store
    except ImportError as error:
        raise UsageError(
            f'{root}: {scheme_of(root)}:// needs obstore; run: pip install "mmtrain[remote]"'
        ) from error
    try:
        return _opened(store, root, writes=writes, token=token)
    except (exceptions.BaseError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{root}: {mask_secrets(reason)}; set what {SCHEMES[scheme_of(root)]} needs in the "
            "environment, as for its own tools"
        ) from error


def _opened(store: ModuleType, root: str, *, writes: bool, token: str | None) -> "ObjectStore":
    scheme = scheme_of(root)
    shared: dict[str, Any] = {
        # Patience is ours: retrying at two levels would multiply the waiting. But of a file that
        # is sent in parts the client alone can send one part again.
        "retry_config": {"max_retries": 4 if writes else 0},
        "client_options": {
            "connect_timeout": "5s",
            # A part is on its way while nothing is read.
            "read_timeout": WRITE_TIMEOUT if writes else READ_TIMEOUT,
            "timeout": "10m",
        },
    }
    is_plain = scheme == "http" or endpoint(scheme).startswith("http://")
    shared["client_options"]["allow_http"] = is_plain
    if is_web(root):
        headers = {"Authorization": f"Bearer {token}"} if token else login_headers(root)
        shared["client_options"]["default_headers"] = headers
        return store.HTTPStore(root, **shared)
    options = store_options(scheme)
    if scheme == "s3":
        return store.S3Store(urlsplit(root).netloc, **options, **shared)
    return store.from_url(root, **options, **shared)
