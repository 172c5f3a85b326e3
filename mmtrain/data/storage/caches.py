"""The caches of this process: one a folder, by the bytes that hold for it, and the one that a
command asked for."""

import contextlib
import gc
import os
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary, finalize

from mmtrain.data.storage.bound import GB, OtherBoundError, agree, make_folder, unwritable
from mmtrain.data.storage.cache import Cache
from mmtrain.errors import UsageError

STANDARD_GB = 50.0
"""What a folder may hold where nobody ever said."""
_asked: ContextVar[Cache | None] = ContextVar("cache", default=None)
_there: "WeakValueDictionary[tuple[str, bool], Cache]" = WeakValueDictionary()
_registering = Lock()


def open_cache(
    folder: str, *, max_bytes: int | None, whole: bool = True, prefix: str = "data."
) -> Cache:
    """The one of this process, if a part of it has opened the folder already, and else a new one;
    arguments as `Cache`: so what one part will read is known when another's pieces need room.

    Args:
        folder: as `Cache`.
        max_bytes: None: what holds for the folder, or held last.
        whole: as `Cache`.
        prefix: as `Cache`.

    Raises:
        UsageError: as `Cache`; or somebody reads through the folder, here or in another process of
            the machine, who was given another number of bytes.
    """
    name = os.path.realpath(folder)
    with _registering:
        cache = _there.get((name, whole))
        if cache is not None and max_bytes in (None, cache.max_bytes):
            cache.prepare(prefix)  # it may have gone, or be full
            return cache
        cache = None  # here it would outlive whoever else had it
        made = _there[name, whole] = _agreed(Path(folder), max_bytes, whole, prefix)
    return made


def _agreed(folder: Path, asked: int | None, whole: bool, prefix: str) -> Cache:
    """A new cache, by the bytes that hold for its folder."""
    make_folder(folder, asked or 0, prefix)
    agreed = partial(agree, folder, asked=asked, standard=int(STANDARD_GB * GB))
    try:
        try:
            max_bytes, descriptor = agreed()
        except OtherBoundError:
            gc.collect()  # what nobody has any more may hold the folder still
            max_bytes, descriptor = agreed()
    except OtherBoundError as error:
        raise UsageError(
            f"{prefix}cache_gb = {(asked or 0) / GB:g}: {folder} is being read through with "
            f"{error.max_bytes / GB:g}, and who has less would drop what another one fetched; name "
            "the same, or another folder"
        ) from error
    except OSError as error:
        raise unwritable(folder, error, prefix) from error
    other = _there.get((os.path.realpath(folder), not whole))
    budget = None if other is None else other.budget
    try:
        cache = Cache(str(folder), max_bytes=max_bytes, whole=whole, prefix=prefix, budget=budget)
    except BaseException:
        os.close(descriptor)
        raise
    finalize(cache, os.close, descriptor).atexit = False
    return cache


def is_same_folder(one: Path, other: Path) -> bool:
    """Whether two paths are of one folder."""
    return os.path.realpath(one) == os.path.realpath(other)


@contextlib.contextmanager
def caching(cache: Cache | None) -> Iterator[None]:
    """Within the context, what is opened reads remote shards through this cache: a command's, or
    what a run reads besides its own data."""
    token = _asked.set(cache)
    try:
        yield
    finally:
        _asked.reset(token)


def asked_for() -> Cache | None:
    """The cache of `caching`."""
    return _asked.get()
