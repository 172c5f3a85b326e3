"""Multi-head, grouped-query and multi-query attention behind one function.

Which kernel runs is a static table by device, dtype and length, never timed at run time, so that a
run repeats itself bit for bit on one kind of machine.
"""

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn import functional as F

from mmtrain.nn.kv_cache import LayerCache
from mmtrain.nn.masks import Mask
from mmtrain.nn.products import by_onednn, cast_once
from mmtrain.nn.rope import RopeTable, apply_rope
from mmtrain.nn.varlen import attend_varlen, takes_varlen

# Longest sequence for which plain matmuls beat torch's fused kernels, forward and backward
# together (benchmarks/attention_forms.py, batch 16, one thread). On a CPU with AMX, fused against
# plain: bf16 T = 50 37 against 7 ms, T = 77 causal 37 against 9, T = 197 115 against 52 (its
# backward is slow at all lengths of a CLIP); fp32 T = 50 12 against 9, T = 197 86 against 134. With
# AVX-512's bf16 alone: T = 50 23 against 5, T = 197 103 against 61; fp32 8 against 11, 87 against
# 123. On one with AVX2 alone the fused ones win throughout: fp32 T = 50 16 against 24, T = 197 231
# against 324; bf16 T = 50 72 against 148. On a GPU they win too.
if torch.cpu._is_amx_tile_supported():
    PLAIN_UP_TO = {
        ("cpu", torch.bfloat16): 256,
        ("cpu", torch.float16): 256,
        ("cpu", torch.float32): 64,
    }
elif torch.cpu._is_avx512_bf16_supported():
    PLAIN_UP_TO = {("cpu", torch.bfloat16): 256}
else:
    PLAIN_UP_TO = {}
# Where oneDNN computes fp32: T = 50 39 against 10, T = 197 119 against 97.
PLAIN_UP_TO_BY_ONEDNN = 256


def _plain_up_to(device: torch.device, dtype: torch.dtype) -> int:
    """The longest sequence that takes three plain products."""
    if device.type == "cpu" and dtype == torch.float32 and by_onednn():
        return PLAIN_UP_TO_BY_ONEDNN
    return PLAIN_UP_TO.get((device.type, dtype), 0)


def _takes_plain(q_BTNH: Tensor, k_BSKH: Tensor) -> bool:
    """Whether three plain products serve: up to a length, and in a graph of any length, which must
    not ask for the number."""
    sizes = q_BTNH.size(1), k_BSKH.size(1)
    if any(isinstance(size, torch.SymInt) for size in sizes):
        return True
    return max(sizes) <= _plain_up_to(q_BTNH.device, q_BTNH.dtype)


def _attend_plain(
    q_BTNH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    mask: Mask,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(H)) v by three dense operations; query heads fold into the rows."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    q = (
        (q_BTNH * (H**-0.5 if scale is None else scale))
        .view(B, T, K, G, H)
        .permute(0, 2, 3, 1, 4)
        .reshape(B * K, G * T, H)
    )
    k = k_BSKH.permute(0, 2, 3, 1).reshape(B * K, H, S)
    v = v_BSKH.transpose(1, 2).reshape(B * K, S, H)
    scores = torch.bmm(q, k)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    allowed = mask.allowed
    if mask.causal:
        allowed = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()[None]
    if allowed is not None:
        scores = scores.view(B, K, G, T, S)
        scores = scores.masked_fill(~allowed[:, None, None], float("-inf"))
        scores = scores.view(B * K, G * T, S)
    out = torch.bmm(scores.softmax(-1).to(v.dtype), v)
    return out.view(B, K, G, T, H).permute(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _attend_fused(
    q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Mask, scale: float | None = None
) -> Tensor:
    """torch's scaled_dot_product_attention, with its flag where a flag serves."""
    if q_BTNH.size(1) == 1 and not mask.causal:
        return _attend_once(q_BTNH, k_BSKH, v_BSKH, mask, scale)
    out_BNTH = F.scaled_dot_product_attention(
        q_BTNH.transpose(1, 2),
        k_BSKH.transpose(1, 2),
        v_BSKH.transpose(1, 2),
        attn_mask=None if mask.allowed is None else mask.allowed[:, None],
        is_causal=mask.causal,
        scale=scale,
        enable_gqa=q_BTNH.size(2) != k_BSKH.size(2),
    )
    return out_BNTH.transpose(1, 2)


def _attend_once(
    q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Mask, scale: float | None
) -> Tensor:
    """One query a row, as a step of decoding has: the query heads of a key head stand where tokens
    do, so that grouped keys and values are read in place; torch would repeat them for every head.
    """
    q_BKGH = q_BTNH.squeeze(1).unflatten(1, (k_BSKH.size(2), -1))
    out_BKGH = F.scaled_dot_product_attention(
        q_BKGH,
        k_BSKH.transpose(1, 2),
        v_BSKH.transpose(1, 2),
        attn_mask=None if mask.allowed is None else mask.allowed[:, None],
        scale=scale,
    )
    return out_BKGH.flatten(1, 2)[:, None]


# Code would be compiled anew for the lengths of every step. torch.compiler.disable would import the
# compiler here, a second that a mistyped key need not wait for.
@_disable_dynamo
def _attend_each(
    q_1TNH: Tensor,
    k_1SKH: Tensor,
    v_1SKH: Tensor,
    mask: Mask,
    scale: float | None,
    cap: float | None,
) -> Tensor:
    """Texts side by side, each by itself: nobody pays for pairs that do not see each other."""
    assert mask.lengths is not None and q_1TNH.size(0) == 1, "texts stand side by side in one row"
    if cap is None and takes_varlen(q_1TNH):
        return attend_varlen(q_1TNH, k_1SKH, v_1SKH, mask, scale)
    each = zip(*(x.split(mask.lengths, dim=1) for x in (q_1TNH, k_1SKH, v_1SKH)), strict=True)
    out = [
        attend(q, k, v, mask.of_one(q.size(1), q.device), scale=scale, cap=cap) for q, k, v in each
    ]
    return torch.cat(out, dim=1)


def attend(
    q_BTNH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    mask: Mask,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """Scaled dot-product attention. Vaswani et al. 2017, arXiv:1706.03762, Eq. 1.

    Args:
        q_BTNH: queries.
        k_BSKH: keys; K divides N, each key head serves N / K query heads (GQA, arXiv:2305.13245).
        v_BSKH: values.
        mask: `causal` needs T = S; every query must be allowed at least one key.
        scale: what scores are multiplied by. None: 1 / sqrt(H).
        cap: scores s become cap * tanh(s / cap), for which there is no fused kernel. None: off.

    Returns:
        [B, T, N, H].
    """
    assert not mask.causal or q_BTNH.size(1) == k_BSKH.size(1), "a causal flag needs T = S"
    if mask.lengths is not None:
        return _attend_each(q_BTNH, k_BSKH, v_BSKH, mask, scale, cap)
    if cap is not None or _takes_plain(q_BTNH, k_BSKH):
        return _attend_plain(q_BTNH, k_BSKH, v_BSKH, mask, scale, cap)
    return _attend_fused(q_BTNH, k_BSKH, v_BSKH, mask, scale)


class Attention(nn.Module):
    """Self-attention, or cross-attention where `context_dim` is given.

    The number of heads is inferred from the projections' outputs, so tensor parallelism that shards
    them needs no change here. `q_norm` and `k_norm` act on each head (arXiv:2302.05442), or with
    `norm_over_heads` on all heads of a token together; `scale` and `cap` are `attend`'s.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        context_dim: int | None = None,
        qkv_bias: bool = True,
        out_bias: bool = True,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        norm_over_heads: bool = False,
        scale: float | None = None,
        cap: float | None = None,
    ) -> None:
        super().__init__()
        assert (q_norm is None) == (k_norm is None), "queries and keys are normalised together"
        self.head_dim = head_dim
        context_dim = dim if context_dim is None else context_dim
        self.q = nn.Linear(dim, num_heads * head_dim, bias=qkv_bias)
        self.k = nn.Linear(context_dim, num_kv_heads * head_dim, bias=qkv_bias)
        self.v = nn.Linear(context_dim, num_kv_heads * head_dim, bias=qkv_bias)
        self.o = nn.Linear(num_heads * head_dim, dim, bias=out_bias)
        self.q_norm: nn.Module | None = q_norm
        self.k_norm: nn.Module | None = k_norm
        self.norm_over_heads: bool = norm_over_heads
        self.scale: float | None = scale
        self.cap: float | None = cap

    def queries_keys(self, x_BTD: Tensor, source_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised, without positions: [B, T, N, H] and [B, S, K, H]."""
        q, k = self.q(x_BTD), self.k(source_BSD)
        if self.norm_over_heads:
            q, k = self._normalised(q, k)
        q, k = q.unflatten(-1, (-1, self.head_dim)), k.unflatten(-1, (-1, self.head_dim))
        return (q, k) if self.norm_over_heads else self._normalised(q, k)

    def _normalised(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q), self.k_norm(k)

    def forward(
        self,
        x_BTD: Tensor,
        context_BSD: Tensor | None = None,
        *,
        mask: Mask,
        rope: RopeTable | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D].

        Args:
            x_BTD: queries' input; keys' and values' too unless `context_BSD` is given.
            context_BSD: what cross-attention looks at.
            mask: over this call's queries and all keys, cached ones included.
            rope: tables for this call's tokens, applied to queries and keys.
            cache: keys and values are appended to it and read back from it.
        """
        x_BTD = cast_once(x_BTD)
        source = x_BTD if context_BSD is None else cast_once(context_BSD)
        q, k = self.queries_keys(x_BTD, source)
        v = self.v(source).unflatten(-1, (-1, self.head_dim))
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        if cache is not None:
            k, v = cache.update(k, v)
        return self.o(attend(q, k, v, mask, scale=self.scale, cap=self.cap).flatten(-2))
