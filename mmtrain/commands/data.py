"""`mmtrain data`: indexes and checks of shards."""

import sys
from pathlib import Path

from mmtrain.data.shard_check import check_shards, index_shards
from mmtrain.errors import UsageError


def data_index_command(*, data: tuple[str, ...], index_dir: Path | None) -> None:
    """`mmtrain data index`: write what indexes are missing or stale, with checksums; tell of what
    changed since there were others, and of damage."""
    report = index_shards(data, index_dir=_text(index_dir))
    for line in report.changes:
        print(f"changed since the checksums that are replaced: {line}")
    print(
        f"{report.num_samples} samples in {len(report.shards)} shards; "
        f"{report.num_new} indexes written"
    )
    _refuse(report.problems)


def data_check_command(*, data: tuple[str, ...], index_dir: Path | None) -> None:
    """`mmtrain data check`: compare every shard with its index, member by member."""
    report = check_shards(data, index_dir=_text(index_dir))
    for shard in report.shards:
        state = "verified" if shard.is_verified else "readable"
        if not shard.is_indexed:
            state += ", but it has no index to compare with (mmtrain data index writes one)"
        elif not shard.is_verified:
            state += ", but its index has no checksums (mmtrain data index adds them)"
        print(f"{shard.path}: {shard.num_samples} samples, {state}")
    _refuse(report.problems)


def _refuse(problems: tuple[str, ...]) -> None:
    """End with status 2 where something is wrong, every problem on a line of its own."""
    for problem in problems:
        print(f"mmtrain: {problem}", file=sys.stderr)
    if problems:
        raise UsageError(f"{len(problems)} problem(s) found; fetch those shards again")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
