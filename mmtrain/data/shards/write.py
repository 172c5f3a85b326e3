"""One shard written, there whole or not at all."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from webdataset.writer import ShardWriter

from mmtrain.files import replacing

_WITHOUT_END = 1 << 62


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write a tar in webdataset's layout; the same samples give the same bytes.

    Args:
        path: of the shard.
        samples: key and files by extension each, in order.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    with replacing(path) as partial, partial.open("wb") as file:
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
