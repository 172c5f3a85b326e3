"""Memory that a CPU's tensors give back stays with the process.

glibc returns blocks of some MB to the system as soon as they are free, and the system hands out
zeroed pages one by one when the next operation asks again: thousands of page faults in every step.
"""

import ctypes
import os
from functools import cache

_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""By which a user tells glibc himself."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Let this process keep what it frees, in blocks of up to 2 GiB -> whether the C library does.
    What the user has set for it in the environment stays.

    A training step of ViT-B/32 on a CPU is 1.25 times as fast in bf16 and 1.09 in fp32, its peak
    the same (benchmarks/kept_memory.py). What stays is the process's largest so far.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc's: musl, macOS, Windows
        return False
    return all([set_option(option, _MOST) for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD)])
