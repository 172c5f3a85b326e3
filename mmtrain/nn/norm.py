"""Normalisation layers: LayerNorm, RMSNorm, partial RMSNorm and Gemma's (1 + weight)."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmtrain.nn.transforms import is_transformed

_PLAIN = (Tensor, nn.Parameter, FakeTensor)
NormKind = Literal["layer", "rms", "partial_rms", "gemma_rms"]
NO_KERNEL_ON = frozenset({"cpu"})
"""Devices for which torch makes RMSNorm of single operations."""


def unit_norm(x_BE: Tensor) -> Tensor:
    """x / |x| over the last dim, [B, E] -> [B, E] in fp32 at least.

    Divided and kept in bf16, lengths would differ from 1 by up to 0.4 %, and a text could win by
    being the longer one.
    """
    return F.normalize(x_BE.to(torch.promote_types(x_BE.dtype, torch.float32)), dim=-1)


class RMSNorm(nn.Module):
    """x / rms(x) * weight. Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4."""

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalise the last dim; the dtype is kept."""
        return _rms_norm(x_BTD, self.weight, self.eps)

    def reset_parameters(self) -> None:
        """The identity scale."""
        nn.init.ones_(self.weight)


class PartialRMSNorm(nn.Module):
    """RMSNorm whose statistic is taken over the first `fraction` of the features.

    The paper's pRMSNorm: k = ceil(n p) features (arXiv:1910.07467, section 4.2; 6.25 % is enough).
    """

    def __init__(self, dim: int, *, fraction: float, eps: float = 1e-6) -> None:
        super().__init__()
        if not 0 < fraction <= 1:
            raise ValueError(f"norm_fraction = {fraction} must lie in (0, 1]")
        # The small term: 100 * 0.07 is 7.000000000000001.
        self.num_measured = math.ceil(dim * fraction - 1e-9)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalise the last dim; the statistic is computed in at least fp32."""
        measured = x_BTD[..., : self.num_measured]
        measured = measured.to(torch.promote_types(x_BTD.dtype, torch.float32))
        scale = torch.rsqrt(measured.square().mean(-1, keepdim=True) + self.eps)
        return (x_BTD * scale).to(x_BTD.dtype) * self.weight.to(x_BTD.dtype)

    def reset_parameters(self) -> None:
        """The identity scale."""
        nn.init.ones_(self.weight)


class GemmaRMSNorm(nn.Module):
    """RMSNorm with weight stored as an offset from one: x / rms(x) * (1 + weight).

    Computed in fp32 before the cast back, as Gemma's checkpoints expect (arXiv:2403.08295).
    """

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalise the last dim; the dtype is kept."""
        wide = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        weight = 1.0 + self.weight.to(wide.dtype)
        return _rms_norm(wide, weight, self.eps).to(x_BTD.dtype)

    def reset_parameters(self) -> None:
        """The identity scale."""
        nn.init.zeros_(self.weight)


def _rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dim, in the dtype of x."""
    trains = torch.is_grad_enabled() and (x.requires_grad or weight_D.requires_grad)
    # Of subclasses a DTensor may be cut along any dim; compiled code is fused anyway. Fake ones are
    # `mmtrain plan`'s: torch's single operations would keep more than this or a GPU's kernel.
    plain = type(x) in _PLAIN and type(weight_D) in _PLAIN
    by_torch = torch.compiler.is_compiling() or is_transformed()
    if trains and plain and x.device.type in NO_KERNEL_ON and not by_torch:
        return _RMSNormOnCPU.apply(x, weight_D, eps)
    return F.rms_norm(x, (x.size(-1),), weight_D.to(x.dtype), eps)


class _RMSNormOnCPU(torch.autograd.Function):
    """F.rms_norm to train by: on a CPU torch makes it of single operations, and autograd takes a
    dozen more back. Both ways are 17 here: 8,192 x 192 in fp32 take 5.5 ms on a core instead of
    13.3. A weight that is wider than x stays so, where F.rms_norm needs it rounded. There is no
    second derivative, which is an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        inverse = length.square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        return (x * inverse).mul_(weight_D).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """With n = x / rms(x) and g the output's gradient: the weight's is the sum of g n, that of
        x is (g w - n mean(g w n)) / rms(x)."""
        x, weight_D, inverse = ctx.saved_tensors
        wide, dim = inverse.dtype, x.size(-1)
        gradient_RD = gradients[0].reshape(-1, dim).to(wide)
        inverse_R1, wide_D = inverse.view(-1, 1), weight_D.to(wide)
        normal_RD = x.reshape(-1, dim) * inverse_R1
        product_RD = gradient_RD * normal_RD
        with torch.autocast("cpu", enabled=False):  # sums in fp32, wherever backward is called
            mean_R1 = (product_RD @ wide_D[:, None]).div_(dim)
        x_RD = (gradient_RD * wide_D).addcmul_(normal_RD, mean_R1, value=-1).mul_(inverse_R1)
        return x_RD.view_as(x).to(x.dtype), product_RD.sum(0).to(weight_D.dtype), None


def build_norm(
    kind: NormKind, dim: int, *, eps: float, fraction: float = 1.0, bias: bool = True
) -> nn.Module:
    """A norm over the last dim of size `dim`.

    Args:
        kind: `layer`, `rms`, `partial_rms` or `gemma_rms`.
        dim: features.
        eps: added under the root.
        fraction: share of the features that `partial_rms` measures.
        bias: whether `layer` has one; the others never have.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind == "layer":
        return nn.LayerNorm(dim, eps=eps, bias=bias)
    if kind == "rms":
        return RMSNorm(dim, eps=eps)
    if kind == "partial_rms":
        return PartialRMSNorm(dim, fraction=fraction, eps=eps)
    if kind == "gemma_rms":
        return GemmaRMSNorm(dim, eps=eps)
    raise ValueError(f'norm = "{kind}" is unknown; use layer, rms, partial_rms or gemma_rms')
