"""Texts side by side by one kernel of an accelerator, where torch has it.

It is FlashAttention's (arXiv:2307.08691) over cumulative lengths, in half precision alone.
"""

from inspect import signature

import torch
from torch import Tensor

from mmtrain.nn.host import sent
from mmtrain.nn.masks import Mask

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch without it
    varlen_attn = None

_WANTED = {"scale", "window_size", "enable_gqa"}
"""What it must take; the first torch that had it took less."""
_HAS = varlen_attn is not None and set(signature(varlen_attn).parameters) >= _WANTED
_DTYPES = (torch.bfloat16, torch.float16)
_OLDEST = (8, 0)
"""The compute capability of the first GPUs that run it."""


def takes_varlen(q_1TNH: Tensor) -> bool:
    """Whether the kernel computes these queries."""
    if not _HAS or q_1TNH.device.type != "cuda" or q_1TNH.dtype not in _DTYPES:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(q_1TNH.device) >= _OLDEST


def attend_varlen(
    q_1TNH: Tensor, k_1SKH: Tensor, v_1SKH: Tensor, mask: Mask, scale: float | None
) -> Tensor:
    """Attention of texts side by side, as `attend` gives it, [1, T, N, H]."""
    assert varlen_attn is not None and mask.lengths is not None
    end_M = torch.tensor((0, *mask.lengths)).cumsum(0).int()
    end_M = sent(end_M, q_1TNH.device)
    longest = max(mask.lengths)
    before = -1 if mask.window is None else mask.window - 1  # its own token counts as one
    out_TNH = varlen_attn(
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
