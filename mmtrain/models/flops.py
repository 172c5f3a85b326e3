"""Floating-point operations of a forward pass, counted from the shapes alone."""

import functools
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmtrain.models.clip import ClipConfig
from mmtrain.models.decoder_config import DecoderConfig
from mmtrain.models.text import TextConfig, build_text_embed
from mmtrain.models.vision import VisionConfig, build_embed
from mmtrain.nn import TransformerConfig
from mmtrain.nn.flops import FlopCount


@dataclass(frozen=True, kw_only=True)
class ClipFlops:
    """Forward FLOPs of one sample; a multiplication and an addition count as two."""

    image: int
    """Of the vision tower."""
    text: int
    """Of the text tower, at its full context."""

    @property
    def training(self) -> int:
        """Of a training step on one pair: backward costs twice the forward. Recompute and the
        second forward of accumulation are the hardware's work, not the model's, and left out."""
        return 3 * (self.image + self.text)


def clip_flops(
    config: ClipConfig, *, text_length: int | None = None, num_patches: int | None = None
) -> ClipFlops:
    """FLOPs of a CLIP at its native image size.

    Per tower of T tokens: 2 P T + 4 L T^2 (heads * head_dim), P being the matrices' parameters;
    norms, activations and softmax are not counted. PaLM, arXiv:2204.02311, appendix B. A trunk's
    products are counted as they are called.

    Args:
        config: the model.
        text_length: tokens of a text; None: the whole context.
        num_patches: of an image that the tower sees, as `num_kept` in training; None: all.
    """
    tokens = config.text.context_length if text_length is None else text_length
    patches = config.vision.num_patches if num_patches is None else num_patches
    return ClipFlops(
        image=_vision_flops(config.vision, config.embed_dim, patches),
        text=_text_flops(config.text, config.embed_dim, tokens),
    )


def decoder_flops(config: DecoderConfig, *, num_tokens: int) -> int:
    """Forward FLOPs of a text, the logits of every token among them; counted as a CLIP's."""
    vocabulary = 2 * config.transformer.dim * config.vocab_size * num_tokens
    return stack_flops(config.transformer, num_tokens) + vocabulary


def stack_flops(core: TransformerConfig, num_tokens: int) -> int:
    """Forward FLOPs of a stack of blocks on so many tokens."""
    products = 2 * core.num_layers * core.matrix_weights * num_tokens
    scores = 4 * core.num_layers * num_tokens**2 * core.num_heads * core.head_size
    return products + scores


@functools.lru_cache
def _trunk_flops(config: VisionConfig) -> int:
    """Of an image, as its products are called."""
    with FakeTensorMode():
        embed = build_embed(config)
        side = config.image_size
        with FlopCount() as count, torch.no_grad():
            embed(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    return count.total


@functools.lru_cache
def _text_trunk_flops(config: TextConfig) -> int:
    """Of a token: two for each number of a matrix, the tables of ids and places left out."""
    with torch.device("meta"):
        embed = build_text_embed(config)
    linears = (part for part in embed.modules() if isinstance(part, torch.nn.Linear))
    return sum(2 * linear.weight.numel() for linear in linears)


def _vision_flops(config: VisionConfig, embed_dim: int, num_patches: int) -> int:
    if config.trunk is not None:
        projection = 2 * config.transformer.dim * embed_dim if config.projection else 0
        return _trunk_flops(config) + projection
    core, tokens = config.transformer, config.num_prefix + num_patches
    flops = stack_flops(core, tokens)
    flops += _stem_flops(config) if config.stem_channels else 0
    values = config.stem_channels[-1] if config.stem_channels else 3 * config.patch_size**2
    flops += 2 * values * core.dim * num_patches
    if config.pool == "attention":
        # Keys and values of every token, one query, and the pool's own feed-forward.
        flops += 2 * 2 * core.dim**2 * tokens + 2 * 2 * core.dim**2 + 4 * tokens * core.dim
        flops += 2 * 2 * core.dim * core.hidden_dim
    return flops + (2 * core.dim * embed_dim if config.projection else 0)


def _stem_flops(config: VisionConfig) -> int:
    """Of the convolutions over a whole image."""
    widths, flops = (3, *config.stem_channels), 0
    side = config.grid_size * config.patch_size
    for before, after in pairwise(widths):
        side //= 2
        flops += 2 * 9 * before * after * side**2
    return flops


def _text_flops(config: TextConfig, embed_dim: int, num_tokens: int) -> int:
    projection = 2 * config.transformer.dim * embed_dim
    if config.trunk is not None:
        return _text_trunk_flops(config) * num_tokens + config.projection * projection
    return stack_flops(config.transformer, num_tokens) + projection
