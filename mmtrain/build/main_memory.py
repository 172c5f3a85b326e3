"""How much main memory this process may have."""

import resource
from pathlib import Path

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def main_memory() -> int:
    """Bytes that this process may have at most: the machine's, its container's or its own limit."""
    pages = Path("/proc/meminfo").read_text(encoding="ascii").split()
    limits = [1024 * int(pages[1])]
    for path in _CGROUP_LIMITS:
        if path.is_file() and (text := path.read_text(encoding="ascii").strip()).isdecimal():
            limits.append(int(text))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(limits) if soft == resource.RLIM_INFINITY else min(*limits, soft)
