"""Finds shards and their indexes, making those that are missing, and tells what is no tar."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from mmtrain.data.shards.changes import changed_members
from mmtrain.data.shards.index import IndexSummary, ShardIndex, build_index, content_hash
from mmtrain.data.shards.index_file import (
    index_paths,
    is_fresh,
    keep_index,
    load_index,
    load_summary,
)
from mmtrain.data.shards.patterns import expand_patterns
from mmtrain.data.shards.tar_header import BLOCK, MAGIC, parse_header
from mmtrain.data.storage.file import File
from mmtrain.data.storage.open import open_file, open_to_scan
from mmtrain.data.storage.patience import may_pass, patience, patiently
from mmtrain.errors import UsageError

_THREADS = 8
_MAGIC_WITHIN = 1 << 20
_NUM_NAMED = 5
"""Changes of a shard that a message names."""
_NOTHING_TO_COMPARE = "its index was damaged, so that nothing could be compared"
PathT = TypeVar("PathT")
ReturnT = TypeVar("ReturnT")


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
    changes: tuple[str, ...] = ()
    """What was no longer as the checksums said that this new index replaces, a line each."""


def open_shards(
    patterns: str | tuple[str, ...],
    *,
    index_dir: str | None = None,
    crc: bool = False,
    look: bool = False,
    threads: int = _THREADS,
    key: str = "data.train",
    retry_seconds: float | None = None,
) -> tuple[Shard, ...]:
    """Find the shards and their indexes, making those that are missing or stale.

    Args:
        patterns: what `expand_patterns` takes.
        index_dir: where indexes are kept.
        crc: make those without checksums anew, and also those whose checksums are no longer the
            shard's: only who asks for checksums may replace them.
        look: with `crc`, read also the shards whose indexes seem to be theirs, and compare: three
            pieces, by which that is told, are not all of a shard.
        threads: shards at once.
        key: the setting that `patterns` came from, for messages.
        retry_seconds: how long a disk's fault is given to pass; None: see `waiting`.

    Raises:
        UsageError: a shard is missing, no tar, or (without `crc`) no longer what its checksums say,
            or those are in an index that is damaged; or an index cannot be kept.
    """
    retry_seconds = patience(retry_seconds)
    paths = expand_patterns(patterns, key=key, retry_seconds=retry_seconds)
    find = partial(_find_indexes, index_dir=index_dir, look=look)
    one = partial(
        _open_shard, find=find, index_dir=index_dir, crc=crc, key=key, seconds=retry_seconds
    )
    work = partial(read_patiently, one, seconds=retry_seconds, key=key)
    # Threads: nearly all the time goes to the disk and to checksums, which let others run.
    with ThreadPoolExecutor(max(1, min(threads, len(paths)))) as pool:
        opened = list(pool.map(work, paths))
    if changed := [each for each in opened if isinstance(each, _Changed)]:
        reread = partial(_read_changes, seconds=retry_seconds)
        changes = read_patiently(reread, changed[0], seconds=retry_seconds, key=key)
        raise UsageError(_told(changed[0], changes, len(changed), len(paths), key))
    return tuple(each for each in opened if isinstance(each, Shard))


@dataclass(frozen=True, kw_only=True)
class _Changed:
    """A shard that is no longer what the checksums in its index say."""

    path: str
    index_path: Path

    def __str__(self) -> str:
        return self.path


def read_patiently(
    read: Callable[[PathT], ReturnT], path: PathT, *, seconds: float, key: str
) -> ReturnT:
    """What `read` makes of a path, tried again while the fault may pass.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return patiently(partial(read, path), seconds=seconds)
    except OSError as error:
        tried = f", tried for {seconds:g} s (data.retry_seconds)" if may_pass(error) else ""
        raise UsageError(
            f"{key}: {path} cannot be read: {error.strerror or error}{tried}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Indexes:
    """What indexes a shard has."""

    usable: Shard | None = None
    """One that needs no look at the shard: with checksums, else the first without."""
    protecting: Shard | None = None
    """One with checksums that must be compared with the shard."""
    damaged: Path | None = None
    """A file that may have held checksums."""


def _find_indexes(path: str, file: File, *, index_dir: str | None, look: bool) -> _Indexes:
    bare, protecting, damaged = None, None, None
    for place in index_paths(path, index_dir):
        summary = load_summary(place)
        if summary is None:
            damaged = damaged or (place if os.path.lexists(place) else None)
            continue
        found = Shard(path=path, index_path=place, summary=summary, is_new=False)
        fresh = is_fresh(summary, file)
        if fresh and summary.has_crc and not look:
            return _Indexes(usable=found)
        if summary.has_crc:
            protecting = protecting or found
        elif fresh:
            bare = bare or found
    return _Indexes(usable=bare, protecting=protecting, damaged=damaged)


def _open_shard(
    path: str,
    *,
    find: Callable[[str, File], _Indexes],
    index_dir: str | None,
    crc: bool,
    key: str,
    seconds: float,
) -> Shard | _Changed:
    with open_file(path) as file:
        found = find(path, file)
        usable, protecting = found.usable, found.protecting
        if protecting is not None and not crc and _is_other(protecting, file):
            return _Changed(path=path, index_path=protecting.index_path)
        if usable is not None and (usable.summary.has_crc or (protecting is None and not crc)):
            return usable
        if found.damaged is not None and protecting is None and not crc:
            raise UsageError(_told_damaged(found.damaged, path, key))
        refuse_no_tar(file, key=key)
        with open_to_scan(file, seconds=seconds) as whole:
            index = build_index(whole, crc=crc or protecting is not None)
        is_same = protecting is not None and is_fresh(protecting.summary, file)
    changes = () if protecting is None else _changes(protecting.index_path, index)
    if protecting is not None and changes and not crc:
        return _Changed(path=path, index_path=protecting.index_path)
    if protecting is not None and is_same and not changes:
        return protecting
    if protecting is not None and index.summary.damage:  # the checksums of what was whole stay
        return replace(protecting, summary=index.summary)
    if found.damaged is not None and protecting is None:
        changes = (_NOTHING_TO_COMPARE,)
    place = keep_index(index, path, index_dir)
    return Shard(path=path, index_path=place, summary=index.summary, is_new=True, changes=changes)


def _is_other(indexed: Shard, file: File) -> bool:
    """Whether a stale index is surely of other bytes; the same ones may have a new etag."""
    old = indexed.summary
    return old.shard_bytes != file.size or old.content_hash != content_hash(file)


def _changes(old_place: Path, new: ShardIndex) -> tuple[str, ...]:
    old = load_index(old_place)
    return (_NOTHING_TO_COMPARE,) if old is None else tuple(changed_members(old, new))


def _read_changes(changed: _Changed, *, seconds: float) -> tuple[str, ...]:
    with open_file(changed.path) as file, open_to_scan(file, seconds=seconds) as whole:
        return _changes(changed.index_path, build_index(whole, crc=True))


def _told(first: _Changed, changes: tuple[str, ...], num: int, num_shards: int, key: str) -> str:
    named = ", ".join(changes[:_NUM_NAMED])
    more = f" and {len(changes) - _NUM_NAMED} more" if len(changes) > _NUM_NAMED else ""
    return (
        f"{key}: {num} of {num_shards} shards changed since their checksums were made, the first "
        f"is {first.path} ({named}{more}); fetch it again or, if the change is meant, run: "
        f"mmtrain data index {first.path}"
    )


def _told_damaged(index: Path, path: str, key: str) -> str:
    return (
        f"{key}: {index}, the index of {path}, is damaged or of another version, and checksums "
        f"that it may hold are not given up by reading; run: mmtrain data index {path}"
    )


_NOT_TARS = {
    b"\x1f\x8b": "gzip-compressed; unpack it",
    b"\xfd7zXZ": "xz-compressed; unpack it",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; unpack it",
    b"BZh": "bzip2-compressed; unpack it",
    b"PK\x03\x04": "a zip; repack it as a tar",
    b"version https://git-lfs": "a git-lfs pointer; run git lfs pull",
}


def refuse_no_tar(file: File, *, key: str) -> None:
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
