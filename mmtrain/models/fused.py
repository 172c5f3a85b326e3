"""Models for inference: blocks fused (nn/fused.py), everything else shared.

    writer = fused_decoder(decoder)
    rows = generate(writer, prefill(writer, prompts_BT, max_new_tokens=64), config)

    encoder = fused_clip(clip, dtype=torch.bfloat16)
    image_BE = encoder.encode_image(images_BCHW)

    answers = fused_vqa(vqa).choose(images_BCHW, asked)

A fused model has a copy of the weights of that moment: what they become later it does not see.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from mmtrain.models.clip import Clip
from mmtrain.models.decoder import Decoder
from mmtrain.models.slices import shallow_copy
from mmtrain.models.text import TextTower
from mmtrain.models.vision import PatchEmbed, VisionEmbed, VisionTower
from mmtrain.models.vocabulary import DecoderHead
from mmtrain.models.vqa import Vqa
from mmtrain.nn.fused import FusedLinear, FusedTransformer, can_fuse, fuse

_Tower = TypeVar("_Tower", VisionTower, TextTower)


class FusedPatchEmbed(PatchEmbed):
    """The patches' linear map with the normalisation of the pixels in it for good."""

    def __init__(self, embed: PatchEmbed, *, dtype: torch.dtype | None) -> None:
        nn.Module.__init__(self)
        self.patch_size, self.weight = embed.patch_size, embed.weight
        weight, bias = embed.folded()
        with torch.device("meta"):
            linear = nn.Linear(weight.size(1), weight.size(0))
        linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.linear = FusedLinear([linear], dtype=embed.weight.dtype if dtype is None else dtype)

    def forward(self, images_BCHW: Tensor, kept_BP: Tensor | None = None) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, P, D].

        Raises:
            ValueError: patches are to be left out, which only training does.
        """
        if kept_BP is not None:
            raise ValueError("a fused tower embeds every patch: kept_BP is for training")
        return self.linear(self.patches(images_BCHW).to(self.linear.dtype).sub_(128))


@torch.no_grad()
def fused_clip(clip: Clip, *, dtype: torch.dtype | None = None) -> Clip:
    """A CLIP that encodes the same faster, without gradients; the given one stays as it is.

    The CLIP itself where it is fused already or cannot be, see `fused_decoder`.

    Args:
        clip: in eval mode.
        dtype: of the products, as under autocast. None: the weights'.
    """
    if isinstance(clip.vision.transformer, FusedTransformer) or not can_fuse(clip):
        return clip
    twin = shallow_copy(clip)
    twin.vision, twin.text = _fused_vision(clip.vision, dtype), _fused_tower(clip.text, dtype)
    return twin.eval()


@torch.no_grad()
def fused_vqa(vqa: Vqa, *, dtype: torch.dtype | None = None) -> Vqa:
    """A model that chooses and writes the same answers faster, without gradients; the given one
    stays as it is.

    Its towers and its decoder are fused, each where it can be, see `fused_decoder`. The blocks of
    the classifier, which look at the image, and what lies between the parts are shared.

    Args:
        vqa: in eval mode.
        dtype: of the products, as under autocast. None: the weights'.
    """
    twin = shallow_copy(vqa)
    if can_fuse(vqa.vision):
        twin.vision = _fused_vision(vqa.vision, dtype)
    if vqa.text is not None and can_fuse(vqa.text):
        twin.text = _fused_tower(vqa.text, dtype)
    if vqa.generate is not None:
        twin.generate = shallow_copy(vqa.generate)
        twin.generate.decoder = fused_decoder(vqa.generate.decoder, dtype=dtype)
    return twin.eval()


def _fused_vision(tower: VisionTower, dtype: torch.dtype | None) -> VisionTower:
    twin = _fused_tower(tower, dtype)
    # In fp16 the embedding scales pixels and weights as it goes.
    if isinstance(twin.embed, VisionEmbed) and dtype != torch.float16:
        twin.embed = shallow_copy(twin.embed)
        if isinstance(twin.embed.patch, PatchEmbed):
            twin.embed.patch = FusedPatchEmbed(twin.embed.patch, dtype=dtype)
    return twin


def _fused_tower(tower: _Tower, dtype: torch.dtype | None) -> _Tower:
    twin = shallow_copy(tower)
    twin.transformer = fuse(tower.transformer, dtype=dtype)
    return twin


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
