"""How fp32 matrices are multiplied: by which library on a CPU, of how many bits on a GPU.

On a CPU torch's wheels call MKL, which runs its AVX2 kernels on an AMD processor that has AVX-512;
oneDNN, which they hold too, runs the AVX-512 ones there: 210 to 260 GFLOP/s on a core against 100
to 115 (benchmarks/products.py). Both sum in fp32. torch hands fp32 products to oneDNN where a lower
precision is allowed, and oneDNN makes use of that with AMX alone: without it the numbers stay fp32,
which is tried once before the first use.

A GPU multiplies several times as fast in TF32: of 10 bits behind the point instead of 23, summed in
fp32. torch takes that for convolutions and not for matrices; here it is taken for both or neither.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SETTING = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
# Beside torch's own setting, which compiled code cannot read.
_chosen = False


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Within the context a GPU multiplies fp32 numbers in TF32, or it does not.

    Autograd's threads follow. What the process had set is there again afterwards.
    """
    # Read by the new names, which never refuse; set by the old ones, which keep both in agreement.
    matrices: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn
    before = allows_tf32(), convolutions.conv.fp32_precision == "tf32"
    matrices.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        matrices.allow_tf32, convolutions.allow_tf32 = before


def allows_tf32() -> bool:
    """Whether a GPU multiplies fp32 matrices in TF32."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


@contextmanager
def fast_products(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Within the context fp32 products on a CPU are computed by the faster library, and those on a
    GPU in TF32 where `tf32` says so.

    For work in large batches: a product of fewer than some 100,000 multiplications takes 10 us
    longer. Autograd's threads follow. What the process had set is there again afterwards.
    """
    global _chosen
    before = _SETTING.fp32_precision, _chosen
    if device.type == "cpu" and onednn_is_better():
        _SETTING.fp32_precision, _chosen = "bf16", True
    try:
        with tf32_products(tf32):
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
