"""What became of a shard since it was indexed, member by member."""

from mmtrain.data.shards.index import Entry, ShardIndex


def changed_members(old: ShardIndex, new: ShardIndex) -> list[str]:
    """How a shard is no longer what its index says, a line each.

    Contents are compared where both indexes have checksums.
    """
    before, now = _members(old), _members(new)
    lines = []
    if old.summary.shard_bytes != new.summary.shard_bytes:
        lines.append(f"{new.summary.shard_bytes} bytes, its index says {old.summary.shard_bytes}")
    lines += [f"{name} is gone" for name in before.keys() - now.keys()]
    lines += [f"{name} is not in its index" for name in now.keys() - before.keys()]
    for name in before.keys() & now.keys():
        was, entry = before[name], now[name]
        if (was.crc, was.size) != (entry.crc, entry.size):
            lines.append(f"{name} has another content")
        elif (was.offset, was.header_crc) != (entry.offset, entry.header_crc):
            lines.append(f"{name} has moved or has another header")
    if not lines and old.summary.content_hash != new.summary.content_hash:
        lines.append("bytes between its members have changed")
    return sorted(lines)


def _members(index: ShardIndex) -> dict[str, Entry]:
    """Every member by its name; one of a name that was there before is told by its place."""
    found: dict[str, Entry] = {}
    for sample in range(index.summary.num_samples):
        for extension, entry in index.members(sample).items():
            name = f"{index.key(sample)}.{extension}"
            found[name if name not in found else f"{name} (again, at byte {entry.offset})"] = entry
    return found
