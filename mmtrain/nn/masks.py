"""Which keys each query may see."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

MaskKind = Literal["full", "causal", "prefix", "block"]


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Which keys each query may see.

    `causal` alone reaches the kernels as a flag. `allowed` is a bool tensor that broadcasts to
    [B, T, S], True where attention is allowed, and then says all: `causal` is False beside it.
    With `lengths` the one row holds texts of so many tokens side by side, each of which sees itself
    alone, causally and, with a `window`, so many of its tokens at most.
    """

    causal: bool = False
    allowed: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.causal and self.allowed is not None:
            raise ValueError("a Mask is either causal or given as `allowed`, which then says all")
        if self.lengths is not None and not self.causal:
            raise ValueError("texts side by side are causal")
        if self.window is not None and self.lengths is None:
            raise ValueError("a window is of texts side by side; others have it in `allowed`")

    def of_one(self, num_tokens: int, device: torch.device) -> "Mask":
        """That of one of the texts side by side, of so many tokens."""
        if self.window is None or num_tokens <= self.window:
            return Mask(causal=True)
        position_1T = torch.arange(num_tokens, device=device)[None]
        near = window_allowed(position_1T, position_1T, self.window)
        return Mask(allowed=near & causal_allowed(num_tokens, num_tokens, device=device))


def causal_allowed(num_queries: int, num_keys: int, *, device: torch.device) -> Tensor:
    """[1, T, S]: query t is token S - T + t and sees itself and all before it.

    Aligned to the last key, as a KV cache needs; `is_causal=True` in torch aligns to the first.
    """
    allowed = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return allowed.tril(num_keys - num_queries)[None]


def prefix_allowed(prefix_length_B: Tensor, num_tokens: int) -> Tensor:
    """[B, T, T]: causal, and every token sees the whole prefix (prefix LM, arXiv:1910.10683)."""
    device = prefix_length_B.device
    inside = torch.arange(num_tokens, device=device) < prefix_length_B[:, None]
    return causal_allowed(num_tokens, num_tokens, device=device) | inside[:, None, :]


def block_allowed(segment_BT: Tensor) -> Tensor:
    """[B, T, T] from segment ids: one shared context and any number of independent questions.

    Segment 0 (the image) sees all of itself and nothing else, so that its keys serve every
    question; a segment k > 0 sees segment 0 and, causally, itself. A token of a negative segment is
    padding: nobody else sees it, and it sees itself alone.
    """
    num_tokens = segment_BT.size(1)
    causal = causal_allowed(num_tokens, num_tokens, device=segment_BT.device)
    same = segment_BT[:, :, None] == segment_BT[:, None, :]
    query_real = segment_BT[:, :, None] >= 0
    context = (segment_BT[:, None, :] == 0) & query_real
    itself = torch.eye(num_tokens, dtype=torch.bool, device=segment_BT.device)
    return (same & causal & query_real) | context & query_real | itself


def key_length_allowed(length_B: Tensor, num_keys: int) -> Tensor:
    """[B, 1, S]: keys before each row's length."""
    return (torch.arange(num_keys, device=length_B.device) < length_B[:, None])[:, None, :]


def window_allowed(query_position_BT: Tensor, key_position_BS: Tensor, window: int) -> Tensor:
    """[B, T, S]: keys less than `window` tokens before the query; the query itself counts as one.

    By position, not by place in the array, so that padding and branches of a tree count rightly.
    """
    return query_position_BT[:, :, None] - key_position_BS[:, None, :] < window


def segment_positions(segment_BT: Tensor) -> Tensor:
    """[B, T] positions under block_allowed: every question goes on where the context ends.

    So one cached context serves each of its questions as if that were the only one. Padding has
    position 0.
    """
    num_tokens = segment_BT.size(1)
    earlier = causal_allowed(num_tokens, num_tokens, device=segment_BT.device)
    same = segment_BT[:, :, None] == segment_BT[:, None, :]
    rank_BT = (same & earlier).sum(-1) - 1
    context_B1 = (segment_BT == 0).sum(1, keepdim=True)
    rank_BT = rank_BT + torch.where(segment_BT > 0, context_B1, 0)
    return rank_BT.masked_fill(segment_BT < 0, 0)


def build_mask(
    kind: MaskKind,
    num_tokens: int,
    *,
    device: torch.device,
    key_length_B: Tensor | None = None,
    real_BS: Tensor | None = None,
    prefix_length_B: Tensor | None = None,
    segment_BT: Tensor | None = None,
    num_cached: int = 0,
) -> Mask:
    """The mask of a kind, as a flag where a flag serves.

    Args:
        kind: full, causal, prefix or block.
        num_tokens: queries of this call.
        device: where the mask is needed.
        key_length_B: keys of each row, cached ones too and at least 1; later ones are padding that
            nobody sees.
        real_BS: False for padding among all keys, wherever it is: it sees itself alone and nobody
            sees it. A single query must be real.
        prefix_length_B: the bidirectional prefix (kind `prefix`), counted from the first key.
        segment_BT: segment ids (kind `block`) of all keys, see block_allowed.
        num_cached: tokens already in the KV cache; the queries are the last of all keys.

    Raises:
        ValueError: the kind needs an argument that is missing or of another length.
    """
    num_keys, allowed = num_cached + num_tokens, None
    # The newest token sees all the others: no mask at all.
    causal = kind == "causal" and num_keys > 1 and not (num_cached and num_tokens == 1)
    if causal and (num_cached or key_length_B is not None or real_BS is not None):
        allowed = causal_allowed(num_tokens, num_keys, device=device)
    elif kind == "prefix":
        if prefix_length_B is None:
            raise ValueError('mask = "prefix" needs prefix_length_B')
        allowed = prefix_allowed(prefix_length_B, num_keys)[:, num_cached:]
    elif kind == "block":
        if segment_BT is None or segment_BT.size(1) != num_keys:
            raise ValueError(f'mask = "block" needs segment_BT of all {num_keys} keys')
        allowed = block_allowed(segment_BT)[:, num_cached:]
    if key_length_B is not None:
        inside = key_length_allowed(key_length_B, num_keys)
        allowed = inside if allowed is None else allowed & inside
    if real_BS is not None:
        allowed = _without_padding(allowed, real_BS, num_cached)
    return Mask(causal=causal and allowed is None, allowed=allowed)


def _without_padding(allowed: Tensor | None, real_BS: Tensor, num_cached: int) -> Tensor:
    """[B, T, S]: what is allowed, without the keys that are padding."""
    real_B1S = real_BS[:, None, :]
    allowed = real_B1S if allowed is None else allowed & real_B1S
    num_tokens = real_BS.size(1) - num_cached
    if num_tokens == 1:
        return allowed
    # A query of padding must see some key, or its softmax is 0/0.
    itself = torch.eye(num_tokens, dtype=torch.bool, device=real_BS.device)
    return allowed | F.pad(itself, (num_cached, 0))[None]
