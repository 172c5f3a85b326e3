"""Texts side by side by one kernel of an accelerator, where torch has it.

It is FlashAttention's (arXiv:2307.08691) over cumulative lengths, in half precision alone.
"""

from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from mmtrain.nn.host import sent
from mmtrain.nn.masks import Mask

_WANTED = {"scale", "window_size", "enable_gqa"}
"""What the kernel must take; the first torch that had it took less."""
_DTYPES = (torch.bfloat16, torch.float16)
_OLDEST = (8, 0)
"""The compute capability of the first GPUs that run it."""


def takes_varlen(q_1TNH: Tensor) -> bool:
    """Whether the kernel computes these queries."""
    if q_1TNH.device.type != "cuda" or q_1TNH.dtype not in _DTYPES or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(q_1TNH.device) >= _OLDEST and _kernel() is not None


def attend_varlen(
    q_1TNH: Tensor, k_1SKH: Tensor, v_1SKH: Tensor, mask: Mask, scale: float | None
) -> Tensor:
    """Attention of texts side by side, as `attend` gives it, [1, T, N, H]."""
    kernel = _kernel()
    assert kernel is not None and mask.lengths is not None
    end_M = torch.tensor((0, *mask.lengths)).cumsum(0).int()
    end_M = sent(end_M, q_1TNH.device)
    longest = max(mask.lengths)
    before = -1 if mask.window is None else mask.window - 1  # its own token counts as one
    out_TNH = kernel(
        q_1TNH[0],
        k_1SKH[0],
        v_1SKH[0],
        end_M,
        end_M,
        longest,
        longest,
        scale=scale,
        window_size=(before, 0),
        enable_gqa=q_1TNH.size(2) != k_1SKH.size(2),
    )
    assert isinstance(out_TNH, Tensor)
    return out_TNH[None]


@cache
def _kernel() -> Any:
    """torch's, where it takes what is wanted; its module brings a second of others to import."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # a torch without it
        return None
    return varlen_attn if set(signature(varlen_attn).parameters) >= _WANTED else None
