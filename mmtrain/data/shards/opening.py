"""Finds shards and their indexes, making those that are missing."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np

from mmtrain.data.shards.catalogue_file import folder_of
from mmtrain.data.shards.changed import (
    NOTHING_TO_COMPARE,
    Changed,
    changes_of,
    read_changes,
    tell_changed,
)
from mmtrain.data.shards.index import build_index, content_hash
from mmtrain.data.shards.index_file import (
    index_paths,
    is_fresh,
    keep_index,
    load_summary,
    whole_or_damaged,
)
from mmtrain.data.shards.not_tars import refuse_no_tar
from mmtrain.data.shards.opened import Shard, Shards, find_rows, have_sizes
from mmtrain.data.shards.patterns import expand_patterns
from mmtrain.data.shards.side_by_side import by_threads, side_by_side
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.caches import asked_for
from mmtrain.data.storage.file import File
from mmtrain.data.storage.machine_lock import lock_of_machine
from mmtrain.data.storage.open import open_file, open_to_scan
from mmtrain.data.storage.patience import may_pass, patience, patiently
from mmtrain.errors import UsageError
from mmtrain.settings.numbers import refuse_empty_part

_THREADS = 8
_MOST_COMPARED = 1000
"""Shards of catalogues whose pieces are compared at the start."""
_FEW = 16
"""Shards for which no processes are started."""
PathT = TypeVar("PathT")
ReturnT = TypeVar("ReturnT")
WorkT = TypeVar("WorkT")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class _How:
    """How a shard is opened; see `open_shards`."""

    index_dir: str | None
    crc: bool
    look: bool
    key: str
    seconds: float
    cache: Cache | None


@dataclass(frozen=True, kw_only=True)
class _Makers:
    """Who makes indexes; see `open_shards`."""

    may_make: bool
    threads: int
    processes: int
    progress: Progress | None


def open_shards(
    patterns: str | tuple[str, ...],
    *,
    index_dir: str | None = None,
    crc: bool = False,
    look: bool = False,
    compare: bool = False,
    part: tuple[int, int] = (0, 1),
    may_make: bool = True,
    threads: int = _THREADS,
    processes: int = 0,
    progress: Progress | None = None,
    key: str = "data.train",
    retry_seconds: float | None = None,
    cache: Cache | None = None,
) -> Shards:
    """Find the shards and their indexes, making those that are missing or stale.

    Processes of one machine that want the same indexes made wait for the first of them.

    Args:
        patterns: what `expand_patterns` takes.
        index_dir: where indexes are kept.
        crc: make those without checksums anew, and also those whose checksums are no longer the
            shard's: only who asks for checksums may replace them.
        look: with `crc`, read also the shards whose indexes seem to be theirs, and compare: three
            pieces, by which that is told, are not all of a shard.
        compare: look at those pieces now also of more than 1,000 shards in catalogues, of which
            otherwise just the sizes are, the rest when a shard is first read.
        part: number and count of equal parts of the shards, of which one is opened.
        may_make: whether indexes may be made.
        threads: shards at once.
        processes: more than one make the indexes, where there are many to make.
        progress: told how many indexes were made, of how many.
        key: the setting that `patterns` came from, for messages.
        retry_seconds: how long a disk's fault is given to pass; None: see `waiting`.
        cache: keeps what is read of remote shards to make indexes; None: see `caching`.

    Raises:
        UsageError: a shard is missing, no tar, or (without `crc`) no longer what its checksums say,
            or those are in an index that is damaged; an index cannot be kept; or there are fewer
            shards than parts.
    """
    retry_seconds = patience(retry_seconds)
    paths = expand_patterns(patterns, key=key, retry_seconds=retry_seconds)
    refuse_empty_part(part, len(paths), "shards")
    paths = paths[part[0] :: part[1]]
    how = _How(
        index_dir=index_dir,
        crc=crc,
        look=look,
        key=key,
        seconds=retry_seconds,
        cache=cache or asked_for(),
    )
    makers = _Makers(may_make=may_make, threads=threads, processes=processes, progress=progress)
    patient = partial(read_patiently, seconds=retry_seconds, key=key)
    folder = folder_of(paths[0]) or "."
    find = partial(find_rows, paths, index_dir, may_lose=crc)
    shards = Shards(paths, patient(lambda _: find(), folder))
    missing = list(range(len(paths)))
    if not crc and shards.rows.numbers().size:
        fits = patient(lambda _: have_sizes(paths, shards.rows), folder)
        if compare or len(paths) <= _MOST_COMPARED:
            known = np.flatnonzero(fits).tolist()
            is_same = partial(_is_same, seconds=retry_seconds, key=key)
            same = side_by_side(is_same, [shards[number] for number in known], threads=threads)
            fits[known] = list(same)
        missing = np.flatnonzero(~fits).tolist()
    opened = _open_missing(shards, missing, how, makers)
    if changed := [each for each in opened if isinstance(each, Changed)]:
        refuse_changed(changed[0].indexed, len(changed), len(paths), key=key, seconds=retry_seconds)
    for number, each in zip(missing, opened, strict=True):
        assert isinstance(each, Shard)
        shards.put(number, each)
    return shards


def _open_missing(
    shards: Shards, missing: list[int], how: _How, makers: _Makers
) -> list[Shard | Changed]:
    """The shards that no catalogue vouches for, one by one."""
    work = [(shards.paths[n], shards.rows.shard(n, shards.paths[n])) for n in missing]
    find = partial(_open_patiently, how=how, may_make=False)
    found = list(side_by_side(find, work, threads=makers.threads))
    unmade = [i for i, each in enumerate(found) if each is None]
    if unmade and not makers.may_make:
        raise UsageError(
            f"{how.key}: {len(unmade)} of {len(shards)} shards have no index with checksums "
            f"that is theirs, the first is {work[unmade[0]][0]}; run mmtrain data index on them"
        )
    if unmade:
        with lock_of_machine(f"{os.path.abspath(work[unmade[0]][0])} {how.index_dir}"):
            make = partial(_open_patiently, how=how, may_make=True)
            made = _make(make, [work[i] for i in unmade], makers, crc=how.crc)
        for i, each in zip(unmade, made, strict=True):
            found[i] = each
    return [each for each in found if each is not None]


def _make(
    work: Callable[[WorkT], ReturnT], items: Sequence[WorkT], makers: _Makers, *, crc: bool
) -> list[ReturnT]:
    """With progress."""
    made = []
    for one in _making(work, items, makers, crc=crc):
        made.append(one)
        if makers.progress is not None:
            makers.progress(len(made), len(items))
    return made


def _making(
    work: Callable[[WorkT], ReturnT], items: Sequence[WorkT], makers: _Makers, *, crc: bool
) -> Iterator[ReturnT]:
    """By processes where many small members keep one at its headers."""
    if makers.processes > 1 and len(items) > _FEW:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(makers.processes, mp_context=spawn) as pool:
            yield from pool.map(work, items)
    elif crc:  # nearly all the time goes to checksums, which let others run
        yield from by_threads(work, items, threads=makers.threads)
    else:
        yield from side_by_side(work, items, threads=makers.threads)


def _is_same(shard: Shard, *, seconds: float, key: str) -> bool:
    def compare(path: str) -> bool:
        with open_file(path) as file:
            return is_fresh(shard.summary, file)

    return read_patiently(compare, shard.path, seconds=seconds, key=key)


def _open_patiently(
    work: tuple[str, Shard | None], *, how: _How, may_make: bool
) -> Shard | Changed | None:
    path, catalogued = work
    one = partial(_open_shard, how=how, catalogued=catalogued, may_make=may_make)
    return read_patiently(one, path, seconds=how.seconds, key=how.key)


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


def refuse_changed(
    first: Shard, num: int, num_shards: int, *, key: str, seconds: float
) -> NoReturn:
    """Name what changed in the first of some shards since its index was made.

    Raises:
        UsageError: always.
    """
    read = partial(read_changes, first, seconds=seconds)
    changes = read_patiently(read, first.path, seconds=seconds, key=key)
    raise UsageError(tell_changed(first, changes, num, num_shards, key=key))


@dataclass(frozen=True, kw_only=True)
class _Indexes:
    """What indexes a shard has."""

    usable: Shard | None = None
    """One that needs no look at the shard: with checksums, else the first without."""
    protecting: Shard | None = None
    """One with checksums that must be compared with the shard."""
    damaged: Path | None = None
    """A file that may have held checksums."""


def _find_indexes(path: str, file: File, how: _How, catalogued: Shard | None) -> _Indexes:
    bare, protecting, damaged = None, None, None
    candidates: list[Shard] = []
    for place in index_paths(path, how.index_dir):
        summary, is_damaged = whole_or_damaged(load_summary, place)
        if summary is not None:
            candidates.append(Shard(path=path, index_path=place, summary=summary, is_new=False))
        elif is_damaged:
            damaged = damaged or place
    if catalogued is not None and how.crc and catalogued.load() is None:
        damaged = damaged or catalogued.index_path
    elif catalogued is not None:
        candidates.append(catalogued)
    for found in candidates:
        fresh = is_fresh(found.summary, file)
        if fresh and found.summary.has_crc and not how.look:
            return _Indexes(usable=found)
        if found.summary.has_crc:
            protecting = protecting or found
        elif fresh:
            bare = bare or found
    return _Indexes(usable=bare, protecting=protecting, damaged=damaged)


def _open_shard(
    path: str, *, how: _How, catalogued: Shard | None, may_make: bool
) -> Shard | Changed | None:
    """One shard; None where its index had to be made, and may not."""
    crc = how.crc
    with open_file(path) as file:
        found = _find_indexes(path, file, how, catalogued)
        usable, protecting = found.usable, found.protecting
        if protecting is not None and not crc and _is_other(protecting, file):
            return Changed(indexed=protecting)
        if usable is not None and (usable.summary.has_crc or (protecting is None and not crc)):
            return usable
        if found.damaged is not None and protecting is None and not crc:
            raise UsageError(_told_damaged(found.damaged, path, how.key))
        refuse_no_tar(file, key=how.key)
        if not may_make:
            return None
        with open_to_scan(file, seconds=how.seconds, cache=how.cache) as whole:
            index = build_index(whole, crc=crc or protecting is not None)
        is_same = protecting is not None and is_fresh(protecting.summary, file)
    changes = () if protecting is None else changes_of(protecting, index)
    if protecting is not None and changes and not crc:
        return Changed(indexed=protecting)
    if protecting is not None and is_same and not changes and protecting.summary.has_sizes >= crc:
        return protecting
    if protecting is not None and index.summary.damage:  # the checksums of what was whole stay
        return replace(protecting, summary=index.summary)
    if found.damaged is not None and protecting is None:
        changes = (NOTHING_TO_COMPARE,)
    place = keep_index(index, path, how.index_dir)
    return Shard(path=path, index_path=place, summary=index.summary, is_new=True, changes=changes)


def _is_other(indexed: Shard, file: File) -> bool:
    """Whether a stale index is surely of other bytes; the same ones may have a new etag."""
    old = indexed.summary
    return old.shard_bytes != file.size or old.content_hash != content_hash(file)


def _told_damaged(index: Path, path: str, key: str) -> str:
    return (
        f"{key}: {index}, the index of {path}, is damaged or of another version, and checksums "
        f"that it may hold are not given up by reading; run: mmtrain data index {path}"
    )
