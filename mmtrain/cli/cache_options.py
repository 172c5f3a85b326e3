"""The options of a cache on disk, for all commands that read data of stores."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from mmtrain.cli.parser import Parser
from mmtrain.errors import UsageError
from mmtrain.settings.numbers import positive


def add_cache(parser: Parser) -> None:
    """--cache-dir and --cache-gb."""
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="keep what is read of remote shards here, as data.cache_dir (nowhere)",
    )
    parser.add_argument(
        "--cache-gb", type=positive, metavar="N", help="bytes of --cache-dir, in GB (50)"
    )


@contextlib.contextmanager
def asked_cache(arguments: argparse.Namespace) -> Iterator[None]:
    """Within the context, remote shards are read through the cache that a command was given.

    Raises:
        UsageError: its folder cannot be written, or it has a size and no folder.
    """
    folder, size = (getattr(arguments, name, None) for name in ("cache_dir", "cache_gb"))
    if folder is None:
        if size is not None:
            raise UsageError(f"--cache-gb = {size:g} does nothing without --cache-dir")
        yield
        return
    from mmtrain.data.config import CACHE_GB
    from mmtrain.data.storage.cache import GB, caching, open_cache

    with caching(open_cache(str(folder), max_bytes=int((size or CACHE_GB) * GB), prefix="")):
        yield
