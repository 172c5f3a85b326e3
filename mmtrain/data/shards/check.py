"""What `mmtrain data index` and `mmtrain data check` do, as functions with plain reports."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from mmtrain.data.shards.changes import changed_members
from mmtrain.data.shards.index import ShardIndex, build_index
from mmtrain.data.shards.index_file import index_paths, load_index, whole_or_damaged
from mmtrain.data.shards.not_tars import refuse_no_tar
from mmtrain.data.shards.opened import Shard, Shards, find_rows
from mmtrain.data.shards.opening import open_shards
from mmtrain.data.shards.patterns import expand_patterns
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.caches import asked_for
from mmtrain.data.storage.open import open_file, open_to_scan
from mmtrain.data.storage.patience import patience
from mmtrain.errors import UsageError
from mmtrain.settings.numbers import WHOLE, refuse_empty_part

_MAX_PROBLEMS = 100
_LOST = (
    "damaged, so that nothing can be compared with its checksums; mmtrain data index makes it anew"
)


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """What indexing found."""

    shards: Shards
    """Every shard, damaged ones too; `is_new` where its index was written."""

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.summary.num_samples for shard in self.shards)

    @property
    def num_new(self) -> int:
        """Indexes written."""
        return sum(shard.is_new for shard in self.shards)

    @property
    def changes(self) -> tuple[str, ...]:
        """What shards were no longer what their replaced checksums said, one line each."""
        return tuple(
            f"{shard.path}: {line}" for shard in self.shards for line in _cut(shard.changes)
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """Every damage, one line each."""
        return tuple(
            f"{shard.path} at byte {damage.offset}: {damage.reason}"
            for shard in self.shards
            for damage in shard.summary.damage
        )


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """What one shard looks like now."""

    path: str
    """As the user's pattern gave it."""
    is_readable: bool
    """Whether it could be read at all; else nothing was found in it."""
    num_samples: int
    """Samples found now."""
    num_ignored: int
    """Files that belong to no sample."""
    is_indexed: bool
    """Whether there was an index to compare with; without one a lost end may go unseen."""
    is_verified: bool
    """Whether every byte of content was compared with a checksum."""
    problems: tuple[str, ...]
    """What is wrong, one line each, at most 100."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What checking found."""

    shards: tuple[ShardCheck, ...]
    """Every shard."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Every problem with its shard, one line each; empty if all is well."""
        return tuple(f"{shard.path}: {line}" for shard in self.shards for line in shard.problems)


def index_shards(
    patterns: str | tuple[str, ...],
    *,
    index_dir: str | None = None,
    crc: bool = True,
    trust: bool = False,
    part: tuple[int, int] = (0, 1),
    may_make: bool = True,
    workers: int = 4,
    processes: int = 0,
    progress: Callable[[int, int], None] | None = None,
    key: str = "data",
) -> IndexReport:
    """Index every shard that has no index yet, a stale one, or one without checksums.

    Checksums that are no longer the shard's are replaced with `crc`, and told; not by those of a
    shard that is damaged.

    Args:
        patterns: what `expand_patterns` takes.
        index_dir: where indexes are kept; None: beside the shards.
        crc: keep a checksum of every member, which takes reading all of it.
        trust: do not read shards whose size and three pieces are those of their checksums.
        part: number and count of equal parts, of which one is indexed.
        may_make: whether indexes may be made; else all must be there.
        workers: shards at once.
        processes: more than one make the indexes instead, where there are many to make.
        progress: told how many shards are done, of how many.
        key: the setting that `patterns` came from, for messages.

    Raises:
        UsageError: a shard is missing or no tar, an index cannot be kept, or may not be
            made.
    """
    shards = open_shards(
        patterns,
        index_dir=index_dir,
        crc=crc,
        look=crc and not trust and may_make,
        part=part,
        may_make=may_make,
        threads=workers,
        processes=processes,
        progress=progress,
        key=key,
    )
    return IndexReport(shards=shards)


def check_shards(
    patterns: str | tuple[str, ...],
    *,
    index_dir: str | None = None,
    part: tuple[int, int] = WHOLE,
    workers: int = 4,
    key: str = "data",
) -> CheckReport:
    """Read every shard anew and compare it with its index, member by member; writes nothing.

    Args:
        patterns: what `expand_patterns` takes.
        index_dir: where indexes are kept; None: beside the shards.
        part: number and count of equal parts, of which one is read.
        workers: shards at once.
        key: the setting that `patterns` came from, for messages.

    Raises:
        UsageError: a pattern matches nothing, a shard is missing, or there are fewer than parts.
    """
    paths = expand_patterns(patterns, key=key)
    refuse_empty_part(part, len(paths), "shards")
    paths = paths[part[0] :: part[1]]
    rows = find_rows(paths, index_dir, may_lose=False)
    work = partial(_check_shard, index_dir=index_dir, key=key, cache=asked_for())
    catalogued = [rows.shard(number, path) for number, path in enumerate(paths)]
    with ThreadPoolExecutor(max(1, min(workers, len(paths)))) as pool:
        return CheckReport(shards=tuple(pool.map(work, paths, catalogued)))


def _check_shard(
    path: str,
    catalogued: Shard | None,
    *,
    index_dir: str | None,
    key: str,
    cache: Cache | None,
) -> ShardCheck:
    found = [
        (place, *whole_or_damaged(load_index, place)) for place in index_paths(path, index_dir)
    ]
    if catalogued is not None:
        index = catalogued.load()
        found.append((catalogued.index_path, index, index is None))
    # One with checksums tells more, wherever it is.
    loaded = [index for _, index, _ in found if index is not None]
    by_worth = sorted(loaded, key=lambda index: not index.summary.has_crc)
    old = by_worth[0] if by_worth else None
    has_crc = old is not None and old.summary.has_crc
    try:
        scan = partial(open_to_scan, seconds=patience(), cache=cache)
        with open_file(path) as file, scan(file) as whole:
            refuse_no_tar(file, key=key)
            new = build_index(whole, crc=has_crc)
    except UsageError as error:
        return _report(path, [str(error)], old, None)
    except OSError as error:
        return _report(path, [f"cannot be read: {error.strerror or error}"], old, None)
    problems = [f"at byte {damage.offset}: {damage.reason}" for damage in new.summary.damage]
    if old is not None:
        problems += changed_members(old, new)
    lost = [place for place, _, is_damaged in found if is_damaged]
    if lost and not has_crc:
        problems.append(f"its index {lost[0]} is {_LOST}")
    return _report(path, problems, old, new)


def _report(
    path: str, problems: list[str], old: ShardIndex | None, new: ShardIndex | None
) -> ShardCheck:
    return ShardCheck(
        path=path,
        is_readable=new is not None,
        num_samples=0 if new is None else new.summary.num_samples,
        num_ignored=0 if new is None else new.summary.num_ignored,
        is_indexed=old is not None,
        is_verified=new is not None and new.summary.has_crc,
        problems=_cut(problems),
    )


def _cut(lines: Sequence[str]) -> tuple[str, ...]:
    """As many of a shard's lines as somebody reads."""
    if len(lines) <= _MAX_PROBLEMS:
        return tuple(lines)
    rest = len(lines) - _MAX_PROBLEMS + 1
    return (*lines[: _MAX_PROBLEMS - 1], f"and {rest} more")
