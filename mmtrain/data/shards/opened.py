"""Shards whose indexes were found: in catalogues, of which only numbers are held, or one by one."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from mmtrain.data.shards.catalogue import Catalogue, load_catalogue
from mmtrain.data.shards.catalogue_file import catalogue_paths, folder_of
from mmtrain.data.shards.index import IndexSummary, ShardIndex
from mmtrain.data.shards.index_file import load_index, whole_or_damaged
from mmtrain.data.storage.addresses import base_name, is_remote, is_web
from mmtrain.errors import UsageError

_NONE = -1


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
    catalogue: Catalogue | None = None
    """What `index_path` is, if it is a catalogue."""
    row: int = _NONE
    """The shard's row in it."""

    def load(self) -> ShardIndex | None:
        """The index itself; None if it is gone or can be used no more.

        Raises:
            OSError: it cannot be read just now.
        """
        if self.catalogue is None:
            return load_index(self.index_path)
        return self.catalogue.index(self.row, summary=self.summary)


class Hashes(NamedTuple):
    """What tells a shard from others."""

    shard_bytes: int
    index_hash: str
    crc_hash: str | None


class Content(NamedTuple):
    """What tells a content of a path from others, where a store does."""

    path: str
    shard_bytes: int
    version: str | None


class Shards(Sequence[Shard]):
    """Shards in the order of their paths; those of catalogues become objects when asked for.

    Args:
        paths: of all.
        rows: where catalogues have them.
    """

    def __init__(self, paths: list[str], rows: "Rows"):
        self.paths, self.rows = paths, rows
        self._others: dict[int, Shard] = {}

    def put(self, number: int, shard: Shard) -> None:
        """A shard that is in no catalogue, or no more."""
        self._others[number] = shard

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...
    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        if number in self._others:
            return self._others[number]
        shard = self.rows.shard(number, self.paths[number])
        assert shard is not None, "every shard is in a catalogue or was put here"
        return shard

    def sizes(self) -> np.ndarray:
        """int64, the samples of each shard."""
        sizes = self.rows.column("num_samples_T")
        for number, shard in self._others.items():
            sizes[number] = shard.summary.num_samples
        return sizes

    def damaged(self) -> list[Shard]:
        """Those in which members were lost."""
        numbers = self.rows.damaged() - self._others.keys()
        numbers |= {number for number, shard in self._others.items() if shard.summary.damage}
        return [self[number] for number in sorted(numbers)]

    def without_crc(self) -> list[Shard]:
        """Those whose index has no checksums."""
        has_crc = self.rows.column("has_crc_T")
        for number, shard in self._others.items():
            has_crc[number] = shard.summary.has_crc
        return [self[int(number)] for number in np.flatnonzero(has_crc == 0)]

    def contents(self) -> Iterator[Content]:
        """What the store says of each shard, in order."""
        return map(self.content, range(len(self)))

    def content(self, number: int) -> Content:
        """What the store says of one shard."""
        if number in self._others:
            summary = self._others[number].summary
            return Content(self.paths[number], summary.shard_bytes, summary.version)
        return Content(self.paths[number], *self.rows.content(number))

    def hashes(self) -> Iterator[Hashes]:
        """What tells each shard from others, in order."""
        for number in range(len(self)):
            if number in self._others:
                summary = self._others[number].summary
                yield Hashes(summary.shard_bytes, summary.index_hash, summary.crc_hash)
            else:
                yield self.rows.hashes(number)


class Rows:
    """Which row of which catalogue each of some shards has.

    Args:
        num_shards: of the paths.
    """

    def __init__(self, num_shards: int):
        self._catalogues: list[Catalogue] = []
        self._catalogue_P = np.full(num_shards, _NONE, dtype=np.int32)
        self._row_P = np.full(num_shards, _NONE, dtype=np.int64)

    def put(self, catalogue: Catalogue, numbers: list[int], rows: list[int]) -> None:
        """Rows of one catalogue."""
        self._catalogue_P[numbers] = len(self._catalogues)
        self._row_P[numbers] = rows
        self._catalogues.append(catalogue)

    def numbers(self) -> np.ndarray:
        """The shards that have one."""
        return np.flatnonzero(self._row_P != _NONE)

    def shard(self, number: int, path: str) -> Shard | None:
        """A shard of a catalogue; None: it is in none."""
        if self._row_P[number] == _NONE:
            return None
        catalogue, row = self._catalogues[self._catalogue_P[number]], int(self._row_P[number])
        return Shard(
            path=path,
            index_path=catalogue.path,
            summary=catalogue.summary(row),
            is_new=False,
            catalogue=catalogue,
            row=row,
        )

    def column(self, name: str) -> np.ndarray:
        """int64, a column of the tables for each shard; 0 for those in none."""
        values = np.zeros(self._row_P.size, dtype=np.int64)
        for i, catalogue in enumerate(self._catalogues):
            mine = self._catalogue_P == i
            values[mine] = catalogue.column(name)[self._row_P[mine]]
        return values

    def damaged(self) -> set[int]:
        """The shards in which members were lost."""
        found: set[int] = set()
        for i, catalogue in enumerate(self._catalogues):
            is_damaged = np.isin(self._row_P, catalogue.damaged()) & (self._catalogue_P == i)
            found |= set(np.flatnonzero(is_damaged).tolist())
        return found

    def content(self, number: int) -> tuple[int, str | None]:
        """Bytes and version of one shard that has a row."""
        catalogue, row = self._catalogues[self._catalogue_P[number]], int(self._row_P[number])
        return int(catalogue.column("shard_bytes_T")[row]), catalogue.version(row)

    def hashes(self, number: int) -> Hashes:
        """Of one shard that has a row."""
        catalogue, row = self._catalogues[self._catalogue_P[number]], int(self._row_P[number])
        has_crc = catalogue.column("has_crc_T")[row]
        crc_hash = catalogue.column("crc_hash_T")[row].tobytes().hex() if has_crc else None
        return Hashes(
            int(catalogue.column("shard_bytes_T")[row]),
            catalogue.column("index_hash_T")[row].tobytes().hex(),
            crc_hash,
        )


def find_rows(paths: list[str], index_dir: str | None, *, may_lose: bool) -> Rows:
    """The rows that shards have in the catalogues of their folders, by name alone.

    Args:
        paths: of the shards.
        index_dir: where indexes are kept.
        may_lose: go on without a catalogue that is damaged, and the checksums in it.

    Raises:
        UsageError: a catalogue is damaged.
        OSError: one cannot be read just now.
    """
    rows, folders = Rows(len(paths)), dict[str, list[int]]()
    for number, path in enumerate(paths):
        if is_catalogued(path):
            folders.setdefault(folder_of(path), []).append(number)
    for folder, numbers in folders.items():
        catalogue = first_catalogue(folder, index_dir, may_lose=may_lose)
        if catalogue is None:
            continue
        row_of = {name: row for row, name in enumerate(catalogue.names())}
        found = [(n, row_of.get(base_name(paths[n]), _NONE)) for n in numbers]
        found = [(number, row) for number, row in found if row != _NONE]
        rows.put(catalogue, [number for number, _ in found], [row for _, row in found])
    return rows


def is_catalogued(path: str) -> bool:
    """Whether a shard's file name tells it from the others of its folder: a query may, too."""
    return not (is_web(path) and "?" in path)


def first_catalogue(folder: str, index_dir: str | None, *, may_lose: bool) -> Catalogue | None:
    """The catalogue of a folder's shards, if there is one; see `find_rows`."""
    for place in catalogue_paths(folder, index_dir):
        found, is_damaged = whole_or_damaged(load_catalogue, place)
        if found is not None:
            return found
        if is_damaged and not may_lose:
            raise UsageError(
                f"{place}, the catalogue of the shards in {folder or '.'}, is damaged or of "
                "another version, and checksums that it may hold are not given up by reading; run: "
                f"mmtrain data index {folder or '.'}"
            )
    return None


def have_sizes(paths: list[str], rows: Rows) -> np.ndarray:
    """bool, whether each shard has a row, and the size that it says: one listing a folder.

    An object store's shards are compared when they are opened.

    Raises:
        OSError: a folder cannot be listed just now.
    """
    expected = rows.column("shard_bytes_T")
    fits = np.zeros(len(paths), dtype=bool)
    folders: dict[str, dict[str, int]] = {}
    for number in rows.numbers().tolist():
        path = paths[number]
        if is_remote(path):
            fits[number] = True
            continue
        folders.setdefault(folder_of(path), {})[base_name(path)] = number
    for folder, numbers in folders.items():
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                number = numbers.get(entry.name)
                if number is not None:
                    fits[number] = entry.stat().st_size == expected[number]
    return fits
