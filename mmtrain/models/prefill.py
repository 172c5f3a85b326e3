"""Reading prompts before writing.

Prompts are padded on the left, so that every row's next token has the same slot; positions count
from the mask, so that a row is written as it would be alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtrain.models.decoder import Decoder
from mmtrain.nn import DecoderCache


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """Where writing starts: what was read, and what it says of the next token."""

    cache: DecoderCache
    logits_BV: Tensor


def left_pad(
    rows: Sequence[Sequence[int]], *, pad_id: int = 0, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor | None]:
    """Ids of prompts of different lengths -> ids [B, T] and which are real, None where all are.

    Raises:
        ValueError: there is no prompt, or an empty one.
    """
    if not rows or not all(rows):
        raise ValueError("every prompt needs at least one token")
    longest = max(map(len, rows))
    tokens_BT = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows])
    if all(len(row) == longest for row in rows):
        return tokens_BT.to(device), None
    start_B1 = torch.tensor([[longest - len(row)] for row in rows])
    return tokens_BT.to(device), (torch.arange(longest) >= start_B1).to(device)


def to_the_left(x_BTD: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows padded on the right -> padded on the left, so that all are written on from the same
    slot; which tokens are real, and from where each comes, [B, T]."""
    num_tokens = x_BTD.size(1)
    place_T = torch.arange(num_tokens, device=x_BTD.device)
    start_B1 = (num_tokens - length_B)[:, None]
    source_BT = place_T - start_B1
    source_BT = torch.where(source_BT < 0, source_BT + num_tokens, source_BT)
    x_BTD = x_BTD.gather(1, source_BT[:, :, None].expand(-1, -1, x_BTD.size(-1)))
    return x_BTD, place_T >= start_B1, source_BT


@torch.no_grad()
def prefill(
    decoder: Decoder,
    x: Tensor,
    *,
    max_new_tokens: int,
    real_BT: Tensor | None = None,
    prefix_length_B: Tensor | None = None,
    segment_BT: Tensor | None = None,
    cache: DecoderCache | None = None,
) -> Prefilled:
    """Read the prompts.

    Args:
        decoder: writes.
        x: ids [B, T] or vectors [B, T, D], as Decoder.forward takes them; the last is real.
        max_new_tokens: for which the cache must have room.
        real_BT: False for padding on the left.
        prefix_length_B: as in Decoder.forward.
        segment_BT: as in Decoder.forward.
        cache: what the rows hold already, with room for all that comes. None: nothing.

    Raises:
        ValueError: prompt and answer exceed the decoder's context.
    """
    if cache is None:
        cache = decoder.build_cache(x.size(0), x.size(1) + max_new_tokens)
    # Before the pass, in which a learned position that does not exist would be looked up.
    length_B = cache.length_B + (x.size(1) if real_BT is None else real_BT.sum(1))
    longest, limit = int(length_B.max()), decoder.config.context_length
    if longest + max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens = {max_new_tokens} exceed "
            f"context_length = {limit}"
        )
    logits_B1V = decoder(
        x,
        real_BT=real_BT,
        prefix_length_B=prefix_length_B,
        segment_BT=segment_BT,
        cache=cache,
        num_logits=1,
    )
    return Prefilled(cache=cache, logits_BV=logits_B1V[:, 0])
