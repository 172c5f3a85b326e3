"""What an attention layer looked at, computed again from what it read.

The core's kernels keep no probabilities, and need not: a hook sees a layer's inputs, so that
training and serving pay nothing for a map.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.nn.attention import Attention
from mmtrain.nn.kv_cache import GivenKV
from mmtrain.nn.masks import Mask
from mmtrain.nn.rope import RopeTable, apply_rope


def attention_shares(
    layer: Attention,
    x_BTD: Tensor,
    context_BSD: Tensor | None = None,
    *,
    mask: Mask,
    rope: RopeTable | None = None,
    before: GivenKV | None = None,
) -> Tensor:
    """How much of each token every token takes in, the mean over the heads: fp32 [B, T, S].

    Args:
        layer: attention.
        x_BTD, context_BSD, mask, rope: as its forward takes them.
        before: keys of a learned prefix, which are among the S as the first.
    """
    source_BSD = x_BTD if context_BSD is None else context_BSD
    q_BTNH, k_BSKH = layer.queries_keys(x_BTD, source_BSD)
    if rope is not None:
        q_BTNH, k_BSKH = apply_rope(q_BTNH, rope), apply_rope(k_BSKH, rope)
    if before is not None:
        k_BSKH, _ = before.update(k_BSKH, k_BSKH)
    return softmax_shares(q_BTNH, k_BSKH, mask, scale=layer.scale, cap=layer.cap).mean(1)


def softmax_shares(
    q_BTNH: Tensor,
    k_BSKH: Tensor,
    mask: Mask,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(H)), fp32 [B, N, T, S]; `scale` and `cap` as `attend` takes them."""
    k_BSNH = k_BSKH.repeat_interleave(q_BTNH.size(2) // k_BSKH.size(2), dim=2)
    logit_BNTS = torch.einsum("btnh,bsnh->bnts", q_BTNH.float(), k_BSNH.float())
    logit_BNTS = logit_BNTS * (q_BTNH.size(-1) ** -0.5 if scale is None else scale)
    if cap is not None:
        logit_BNTS = cap * torch.tanh(logit_BNTS / cap)
    allowed_BTS = mask.allowed
    if mask.causal:
        allowed_BTS = torch.ones_like(logit_BNTS[0, 0], dtype=torch.bool).tril()[None]
    if allowed_BTS is not None:
        logit_BNTS = logit_BNTS.masked_fill(~allowed_BTS[:, None], -torch.inf)
    return F.softmax(logit_BNTS, dim=-1)
