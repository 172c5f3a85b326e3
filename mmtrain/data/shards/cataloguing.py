"""Joins the indexes of shards into the catalogues of their folders."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mmtrain.data.shards.catalogue import Catalogue
from mmtrain.data.shards.catalogue_file import CatalogueWriter, catalogue_paths, folder_of
from mmtrain.data.shards.index import ShardIndex
from mmtrain.data.shards.index_file import keep
from mmtrain.data.shards.opened import Shard, Shards, first_catalogue, is_catalogued
from mmtrain.data.storage.addresses import base_name, is_remote

_AHEAD = 64
"""Indexes that are read ahead: half a megabyte each."""

Row = tuple[str, Shard]
"""A shard by its file name."""


def write_catalogues(
    shards: Shards,
    *,
    index_dir: str | None = None,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write the catalogue of each folder that shards are in, where it is not what it has to be.

    It keeps what it had of other shards that are still there.

    Args:
        shards: with their indexes.
        index_dir: where indexes are kept.
        threads: indexes read at once.
        progress: told how many shards are in, of how many.

    Returns:
        The files that were written.

    Raises:
        UsageError: one can be written nowhere.
    """
    folders: dict[str, dict[str, int]] = {}
    for number, path in enumerate(shards.paths):
        if is_catalogued(path):
            folders.setdefault(folder_of(path), {})[base_name(path)] = number
    written = []
    for folder, numbers in folders.items():
        old = first_catalogue(folder, index_dir, may_lose=True)
        rows = {name: shards[number] for name, number in numbers.items()}
        if old is not None:
            rows = _others(old, folder, rows) | rows
        ordered = sorted(rows.items())
        if old is None or not _is_all(old, ordered):
            write = partial(_write, ordered, old=old, threads=threads, progress=progress)
            written.append(keep(write, catalogue_paths(folder, index_dir), index_dir))
    return written


def _others(old: Catalogue, folder: str, given: dict[str, Shard]) -> dict[str, Shard]:
    """What a catalogue has of shards that are not given, and are there as they were."""
    found = {}
    for row, name in enumerate(old.names()):
        if name in given:
            continue
        path, size = f"{folder}/{name}" if folder else name, int(old.column("shard_bytes_T")[row])
        # A store is not asked for each of them; reading goes by the names that it lists.
        if is_remote(path) or (os.path.isfile(path) and os.path.getsize(path) == size):
            found[name] = Shard(
                path=path,
                index_path=old.path,
                summary=old.summary(row),
                is_new=False,
                catalogue=old,
                row=row,
            )
    return found


def _is_all(old: Catalogue, rows: list[Row]) -> bool:
    """Whether a catalogue holds just these."""
    return old.names() == [name for name, _ in rows] and all(
        _is_row(old, row, shard) and old.index(row) is not None
        for row, (_, shard) in enumerate(rows)
    )


def _is_row(old: Catalogue, row: int, shard: Shard) -> bool:
    return old.summary(row) == shard.summary or shard.catalogue is old


def _write(
    rows: list[Row],
    path: Path,
    *,
    old: Catalogue | None,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> Path:
    old_rows = {} if old is None else {name: row for row, name in enumerate(old.names())}
    writer = CatalogueWriter(path)
    try:
        for done, (name, row, index) in enumerate(_indexes(rows, old, old_rows, threads), 1):
            if index is not None:
                writer.add(name, index)
            elif old is not None and row is not None:
                writer.add_block(name, old.summary(row), old.key_bytes(row), old.block(row))
            if progress is not None:
                progress(done, len(rows))
        return writer.close()
    finally:
        writer.abandon()


def _indexes(
    rows: list[Row], old: Catalogue | None, old_rows: dict[str, int], threads: int
) -> Iterator[tuple[str, int | None, ShardIndex | None]]:
    """Each shard's name, with the row of the old catalogue that still is its, or with its index."""

    def find(one: Row) -> tuple[str, int | None, ShardIndex | None]:
        name, shard = one
        row = old_rows.get(name)
        index = None
        if old is not None and row is not None and _is_row(old, row, shard):
            index = old.index(row)
        if index is not None:
            return name, row, None
        index = shard.load()
        # Without the index there is no row: the shard is then opened by itself.
        return name, None, index

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for first in range(0, len(rows), _AHEAD):
            for found in pool.map(find, rows[first : first + _AHEAD]):
                if found[1] is not None or found[2] is not None:
                    yield found
