"""The collectives that this rank began last, as torch's flight recorder remembers them."""

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mmtrain.files import replace_file

try:
    # Of a build of torch with distributed; of NCCL's collectives only where it has that.
    import torch._C._distributed_c10d as _recorders
except ImportError:
    _recorders = None


def write_collectives(path: Path) -> str | None:
    """Leave them on disk, as `torchfrtrace` reads them -> the one that is under way, in words.

    None, and no file, where nothing records them. It may be called beside a thread that waits in a
    collective.
    """
    kind = "nccl" if dist.is_initialized() and "nccl" in dist.get_backend() else "fr"
    write = getattr(_recorders, f"_dump_{kind}_trace", None)
    tell = getattr(_recorders, f"_dump_{kind}_trace_json", None)
    if not dist.is_initialized() or write is None or tell is None:
        return None
    entries = json.loads(tell(includeCollectives=True, onlyActive=False)).get("entries", [])
    if not entries:
        return None
    replace_file(path, write(includeCollectives=True, includeStackTraces=True, onlyActive=False))
    return _under_way(entries)


def _under_way(entries: list[dict[str, Any]]) -> str | None:
    """The oldest that is not over: what came after it waits for it."""
    waiting = [one for one in entries if not one["retired"]]
    if not waiting:
        return None
    one = min(waiting, key=lambda entry: entry["record_id"])
    number = one["p2p_seq_id"] if one["is_p2p"] else one["collective_seq_id"]
    group = one["process_group"]
    sizes = " and ".join("x".join(map(str, size)) or "1" for size in one["input_sizes"])
    return f"{one['profiling_name']} of {sizes} (number {number} of group {group[1] or group[0]})"
