"""Finds shards and their indexes, making those that are missing, and tells what is no tar."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmtrain.data.index_file import index_paths, is_fresh, keep_index, load_summary
from mmtrain.data.shard_index import IndexSummary, build_index
from mmtrain.data.shard_patterns import expand_patterns
from mmtrain.data.tar_header import BLOCK, MAGIC, parse_header
from mmtrain.data.tar_scan import ShardFile
from mmtrain.errors import UsageError

_THREADS = 8
_MAGIC_WITHIN = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One indexed shard."""

    path: str
    """As the user's pattern gave it."""
    index_path: Path
    """Where its index is kept."""
    summary: IndexSummary
    """What its index says."""
    is_new: bool
    """Whether the index was made just now."""


def open_shards(
    patterns: str | tuple[str, ...],
    *,
    index_dir: str | None = None,
    crc: bool = False,
    threads: int = _THREADS,
    key: str = "data.train",
) -> tuple[Shard, ...]:
    """Find the shards and their indexes, making those that are missing, stale or lack checksums.

    Raises:
        UsageError: a shard is missing or no tar, or an index cannot be kept.
    """
    paths = expand_patterns(patterns, key=key)
    work = partial(_open_shard, index_dir=index_dir, crc=crc, key=key)
    # Threads: nearly all the time goes to the disk and to checksums, which let others run.
    with ThreadPoolExecutor(max(1, min(threads, len(paths)))) as pool:
        return tuple(pool.map(work, paths))


def _open_shard(path: str, *, index_dir: str | None, crc: bool, key: str) -> Shard:
    try:
        with ShardFile(path) as file:
            for place in index_paths(path, index_dir):
                summary = load_summary(place)
                if summary is not None and is_fresh(summary, file) and (summary.has_crc or not crc):
                    return Shard(path=path, index_path=place, summary=summary, is_new=False)
            refuse_no_tar(file, key=key)
            index = build_index(file, crc=crc)
    except OSError as error:
        raise UsageError(f"{key}: {path} cannot be read: {error.strerror}") from error
    place = keep_index(index, path, index_dir)
    return Shard(path=path, index_path=place, summary=index.summary, is_new=True)


_NOT_TARS = {
    b"\x1f\x8b": "gzip-compressed; unpack it",
    b"\xfd7zXZ": "xz-compressed; unpack it",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; unpack it",
    b"BZh": "bzip2-compressed; unpack it",
    b"PK\x03\x04": "a zip; repack it as a tar",
    b"version https://git-lfs": "a git-lfs pointer; run git lfs pull",
}


def refuse_no_tar(file: ShardFile, *, key: str) -> None:
    """Tell apart what never was a tar from a damaged one.

    Raises:
        UsageError: the file is empty, a web page, compressed or the like.
    """
    head = file.read(0, BLOCK)
    what = next((what for magic, what in _NOT_TARS.items() if head.startswith(magic)), None)
    if not head:
        what = "empty; fetch it again"
    elif what is None and head.strip(b"\0") and isinstance(parse_header(head), str):
        # A first header that is damaged has others behind it.
        kind = "a web page, no tar" if head.lstrip()[:1] == b"<" else "no tar"
        if kind != "no tar" or MAGIC not in file.read(0, _MAGIC_WITHIN):
            what = f"{kind} (it begins {_first_words(head)}); fetch it again"
    if what is not None:
        raise UsageError(f"{key}: {file.path} is {what}")


def _first_words(head: bytes) -> str:
    return repr(head.lstrip()[:24].decode("utf-8", "replace"))
