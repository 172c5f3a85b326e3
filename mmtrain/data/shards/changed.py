"""Shards that are no longer what the checksums in their index say: refused, with what changed."""

from dataclasses import dataclass

from mmtrain.data.shards.changes import changed_members
from mmtrain.data.shards.index import ShardIndex, build_index
from mmtrain.data.shards.opened import Shard
from mmtrain.data.storage.open import open_file, open_to_scan

NOTHING_TO_COMPARE = "its index was damaged, so that nothing could be compared"
_NUM_NAMED = 5
"""Changes of a shard that a message names."""


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A shard that is no longer what the checksums in its index say."""

    indexed: Shard
    """As it was."""


def changes_of(indexed: Shard, new: ShardIndex) -> tuple[str, ...]:
    """What became of a shard since it was indexed, a line each; see `changed_members`."""
    old = indexed.load()
    return (NOTHING_TO_COMPARE,) if old is None else tuple(changed_members(old, new))


def read_changes(indexed: Shard, path: str, *, seconds: float) -> tuple[str, ...]:
    """The same of a shard as it is now.

    Raises:
        OSError: it cannot be read.
    """
    with open_file(path) as file, open_to_scan(file, seconds=seconds) as whole:
        return changes_of(indexed, build_index(whole, crc=True))


def tell_changed(
    first: Shard, changes: tuple[str, ...], num: int, num_shards: int, *, key: str
) -> str:
    """The message about changed shards, with what became of the first of them."""
    changes = changes or ("its store says that it is another one",)
    named = ", ".join(changes[:_NUM_NAMED])
    more = f" and {len(changes) - _NUM_NAMED} more" if len(changes) > _NUM_NAMED else ""
    return (
        f"{key}: {num} of {num_shards} shards changed since their checksums were made, the first "
        f"is {first.path} ({named}{more}); fetch it again or, if the change is meant, run: "
        f"mmtrain data index {first.path}"
    )
