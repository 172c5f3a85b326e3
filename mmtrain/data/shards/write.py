"""One shard written, there whole or not at all."""

import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from webdataset.writer import ShardWriter

from mmtrain.files import writing

_HOST = re.sub(r"[^\w-]", "-", socket.gethostname())
_WITHOUT_END = 1 << 62


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write a tar in webdataset's layout; the same samples give the same bytes.

    Args:
        path: of the shard.
        samples: key and files by extension each, in order.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    partial = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.partial")
    try:
        with writing(path), partial.open("wb") as file:
            with ShardWriter(
                "%d",
                opener=lambda _: file,  # one shard, whose size the caller decides
                maxcount=_WITHOUT_END,
                maxsize=_WITHOUT_END,
                verbose=0,
                encoder=False,
                keep_meta=True,
                mtime=0,  # no date and no owner: the same bytes always
                user="",
                group="",
            ) as shard:
                for key, files in samples:
                    shard.write({"__key__": key, **files})
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what processes of this machine that were killed left of shards in a folder."""
    for path in folder.glob(f".*.{_HOST}.*.partial"):
        owner = path.name.split(".")[-2]
        if owner.isdecimal() and not _is_alive(int(owner)):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
