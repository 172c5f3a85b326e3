"""The options of a cache on disk, for all commands that read data of stores."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from mmtrain.cli.parser import Parser
from mmtrain.errors import UsageError
from mmtrain.settings.numbers import positive

_DATA = ("data", "train", "test", "validation")
"""Options that name what is read through a cache; the sets of a suite are told by the suite."""


def add_cache(parser: Parser) -> None:
    """--cache-dir and --cache-gb."""
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="keep what is read of remote shards here, as data.cache_dir (nowhere)",
    )
    parser.add_argument(
        "--cache-gb",
        type=positive,
        metavar="N",
        help="bytes of --cache-dir, in GB (what it had before, or 50)",
    )


@contextlib.contextmanager
def asked_cache(arguments: argparse.Namespace) -> Iterator[None]:
    """Within the context, remote shards are read through the cache that a command was given.

    Raises:
        UsageError: its folder cannot be written, it has a size and no folder, or there is nothing
            that it would keep.
    """
    folder, size = (getattr(arguments, name, None) for name in ("cache_dir", "cache_gb"))
    if folder is None:
        if size is not None:
            raise UsageError(f"--cache-gb = {size:g} does nothing without --cache-dir")
        yield
        return
    _refuse_local(arguments)
    from mmtrain.data.storage.caches import GB, caching, open_cache

    max_bytes = None if size is None else int(size * GB)
    with caching(open_cache(str(folder), max_bytes=max_bytes, prefix="")):
        yield


def _refuse_local(arguments: argparse.Namespace) -> None:
    """A cache keeps what is read of stores, and copies nothing that is here already."""
    given = [getattr(arguments, name, None) for name in _DATA]
    listed = [[each] if isinstance(each, str) else each for each in given if each is not None]
    paths = [path for some in listed for path in some]
    from mmtrain.data.shards.patterns import is_in_store

    if paths and not any(map(is_in_store, paths)):
        raise UsageError(
            f"--cache-dir has no effect on {' '.join(paths)}: no shard of it is in a store, and "
            "what is on this machine is not copied; leave it out"
        )
