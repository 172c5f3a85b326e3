"""Rotary position embedding in one and two dimensions. Su et al. 2021, arXiv:2104.09864, Eq. 34.

Tables are (cos, sin), each [T, H] or [B, T, H], the first half of sin negated; the rotation pairs
feature i with i + H/2, the half-split form that Llama's checkpoints use.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmtrain.nn.transforms import is_transformed

RopeTable = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Frequencies slowed down, for texts longer than the ones that a model was first trained on."""

    kind: Literal["linear", "llama3"]
    """`linear`: all of them (arXiv:2306.15595). `llama3`: those that turn seldom within the first
    context, the ones between in part (arXiv:2407.21783, section 3.4.2)."""
    factor: float
    """By which a frequency is divided."""
    low_freq_factor: float = 1.0
    """llama3: a frequency that turns so often or less in the first context is divided whole."""
    high_freq_factor: float = 4.0
    """llama3: one that turns so often or more stays."""
    original_context: int = 8192
    """llama3: tokens of the first context."""

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f'kind = "{self.kind}" must be linear or llama3')
        if not self.factor >= 1:
            raise ValueError(f"factor = {self.factor} must be 1 or more")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor = {self.low_freq_factor} must be above 0 and below "
                f"high_freq_factor = {self.high_freq_factor}"
            )
        if self.original_context < 1:
            raise ValueError(f"original_context = {self.original_context} must be at least 1")

    def scaled(self, frequency: Tensor) -> Tensor:
        """Frequencies in radians a token, the slow ones slower."""
        if self.kind == "linear":
            return frequency / self.factor
        turns = self.original_context * frequency / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0, 1)
        return (1 - kept) * frequency / self.factor + kept * frequency


def _table(angle: Tensor) -> RopeTable:
    """cos and sin of angles [..., H/2] for both halves, with the sign that sin has there."""
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rope_1d(
    position_T: Tensor,
    head_dim: int,
    *,
    theta: float = 10000.0,
    scaling: RopeScaling | None = None,
) -> RopeTable:
    """Tables for positions [T] or [B, T] (in tokens).

    Raises:
        ValueError: `head_dim` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim = {head_dim} must be even for rotary positions")
    exponent = torch.arange(0, head_dim, 2, device=position_T.device, dtype=torch.float32)
    # A quotient, as where Llama's checkpoints come from: one rounding apart is 6e-5 at token 900.
    frequency = 1.0 / theta ** (exponent / head_dim)
    if scaling is not None:
        frequency = scaling.scaled(frequency)
    return _table(position_T.float()[..., None] * frequency)


def rope_2d(row_T: Tensor, column_T: Tensor, head_dim: int, *, theta: float = 100.0) -> RopeTable:
    """Tables for grid positions: half of the frequencies turn with the row, half with the column.

    The axial form of Heo et al. 2024, arXiv:2403.13298, section 3.1 (theta = 100 for images).

    Args:
        row_T: rows [T] or [B, T], in patches; may be fractional.
        column_T: columns, the same shape.
        head_dim: a multiple of four.
        theta: base of the frequencies.

    Raises:
        ValueError: `head_dim` is no multiple of four.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim = {head_dim} must be a multiple of 4 for 2-D rotary positions")
    exponent = torch.arange(0, head_dim, 4, device=row_T.device, dtype=torch.float32)
    frequency = 1.0 / theta ** (exponent / head_dim)
    row = row_T.float()[..., None] * frequency
    column = column_T.float()[..., None] * frequency
    return _table(torch.cat([row, column], dim=-1))


def apply_rope(x_BTNH: Tensor, table: RopeTable) -> Tensor:
    """Rotate the heads of [B, T, N, H] by their tokens' positions; the dtype is kept."""
    cos, sin = (part.to(x_BTNH.dtype).unsqueeze(-2) for part in table)
    if is_transformed():
        return x_BTNH * cos + x_BTNH.roll(x_BTNH.size(-1) // 2, dims=-1) * sin
    return _Rotation.apply(x_BTNH, cos, sin)


class _Rotation(torch.autograd.Function):
    """x cos + swapped(x) sin, three operations each way where autograd has twelve in all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The rotation back."""
        (gradient,), (cos, sin) = gradients, ctx.saved_tensors
        return _turned(gradient, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """x cos + sign swapped(x) sin, the swapped halves read where they are."""
    turned = x * cos
    half = x.size(-1) // 2
    for to, other in (
        (slice(None, half), slice(half, None)),
        (slice(half, None), slice(None, half)),
    ):
        turned[..., to].addcmul_(x[..., other], sin[..., to], value=sign)
    return turned
