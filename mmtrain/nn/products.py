"""Which library multiplies fp32 matrices on a CPU.

torch's wheels call MKL, which runs its AVX2 kernels on an AMD processor that has AVX-512; oneDNN,
which they hold too, runs the AVX-512 ones there: 210 to 260 GFLOP/s on a core against 100 to 115
(benchmarks/products.py). Both sum in fp32. torch hands fp32 products to oneDNN where a lower
precision is allowed, and oneDNN makes use of that with AMX alone: without it the numbers stay fp32,
which is tried once before the first use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_SETTING = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
# Beside torch's own setting, which compiled code cannot read.
_chosen = False


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Within the context fp32 products on a CPU are computed by the faster library.

    For work in large batches: a product of fewer than some 100,000 multiplications takes 10 us
    longer. Autograd's threads follow. What the process had set is there again afterwards.
    """
    global _chosen
    before = _SETTING.fp32_precision, _chosen
    if device.type == "cpu" and onednn_is_better():
        _SETTING.fp32_precision, _chosen = "bf16", True
    try:
        yield
    finally:
        _SETTING.fp32_precision, _chosen = before


def by_onednn() -> bool:
    """Whether `fast_products` has chosen oneDNN. Its overhead for small products, of which torch's
    fused attention is made, decides which form of attention is faster."""
    return _chosen


@cache
def onednn_is_better() -> bool:
    """Whether `fast_products` chooses it: on an AMD processor with AVX-512 and without AMX, where
    nothing is rounded."""
    cpu = torch.cpu
    if cpu._is_amx_tile_supported() or not cpu._is_avx512_supported():
        return False
    facts = Path("/proc/cpuinfo")
    return facts.exists() and "AuthenticAMD" in facts.read_text() and _is_exact()


def _is_exact() -> bool:
    """Whether a number that bf16 would round survives oneDNN's products of several shapes."""
    before, value = _SETTING.fp32_precision, 1 + 2.0**-12
    _SETTING.fp32_precision = "bf16"
    try:
        for rows in (1, 16, 256):
            x, one = torch.full((rows, 64), value), torch.eye(64)
            if not torch.equal(x @ one, x) or not torch.equal(one @ x.mT, x.mT):
                return False
        return True
    finally:
        _SETTING.fp32_precision = before


def cast_once(x: Tensor) -> Tensor:
    """What several products read, in the dtype that autocast wants it in: it would cast for each of
    them, and the gradient of each."""
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x
