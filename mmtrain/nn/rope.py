"""Rotary position embedding in one and two dimensions. Su et al. 2021, arXiv:2104.09864, Eq. 34.

Tables are (cos, sin), each [T, H] or [B, T, H]; the rotation pairs feature i with i + H/2, the
half-split form that Llama's checkpoints use.
"""

import torch
from torch import Tensor

RopeTable = tuple[Tensor, Tensor]


def _table(angle: Tensor) -> RopeTable:
    """cos and sin of angles [..., H/2], repeated over both halves."""
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rope_1d(position_T: Tensor, head_dim: int, *, theta: float = 10000.0) -> RopeTable:
    """Tables for positions [T] or [B, T] (in tokens).

    Raises:
        ValueError: `head_dim` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim = {head_dim} must be even for rotary positions")
    exponent = torch.arange(0, head_dim, 2, device=position_T.device, dtype=torch.float32)
    # A quotient, as where Llama's checkpoints come from: one rounding apart is 6e-5 at token 900.
    frequency = 1.0 / theta ** (exponent / head_dim)
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
    first, second = x_BTNH.chunk(2, dim=-1)
    return x_BTNH * cos + torch.cat([-second, first], dim=-1) * sin
