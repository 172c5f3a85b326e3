"""Models for inference: blocks fused (nn/fused.py), everything else shared.

    writer = fused_decoder(decoder)
    rows = generate(writer, prefill(writer, prompts_BT, max_new_tokens=64), config)

A fused model has a copy of the weights of that moment: what they become later it does not see.
"""

import torch
from torch import nn

from mmtrain.models.decoder import Decoder
from mmtrain.models.slices import shallow_copy
from mmtrain.models.vocabulary import DecoderHead
from mmtrain.nn.fused import FusedLinear, FusedTransformer, can_fuse, fuse


@torch.no_grad()
def fused_decoder(
    decoder: Decoder, *, dtype: torch.dtype | None = None, keep: bool = True
) -> Decoder:
    """A decoder that reads and writes the same faster, without gradients.

    The decoder itself where it is fused already, or cannot be: sharded over ranks, cut in stages,
    or with an adapter's terms that are not merged.

    Args:
        decoder: in eval mode.
        dtype: of the products and of the cache. None: the weights'.
        keep: whether it stays as it is. If not, it loses its blocks while those of the other are
            made, so that memory need not hold both.
    """
    if isinstance(decoder.transformer, FusedTransformer) or not can_fuse(decoder):
        return decoder
    if decoder.embed is None or decoder.head is None:
        return decoder
    twin = shallow_copy(decoder)
    twin.head = _fused_head(decoder.head, decoder.embed.token.weight, dtype)
    twin.transformer = fuse(decoder.transformer, dtype=dtype, keep=keep)
    return twin.eval()


def _fused_head(
    head: DecoderHead, token_VD: nn.Parameter, dtype: torch.dtype | None
) -> DecoderHead:
    """The head, its matrix laid out anew, the token embedding's too where it is tied."""
    projection = head.projection
    if projection is None:
        with torch.device("meta"):
            projection = nn.Linear(token_VD.size(1), token_VD.size(0), bias=False)
        projection.weight = token_VD
    twin = shallow_copy(head)
    fused = FusedLinear([projection], dtype=dtype)
    twin.projection = fused  # pyright: ignore[reportAttributeAccessIssue]
    return twin
