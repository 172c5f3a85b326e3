"""Architectures by the names that people know them by, and a few of our own.

The shapes are those of open_clip's model configs (https://github.com/mlfoundations/open_clip,
src/open_clip/model_configs); tests compare each with the installed open_clip.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mmtrain.models.clip import ClipConfig
from mmtrain.models.text import TextConfig
from mmtrain.models.trunks.config import ResNetTrunk
from mmtrain.models.vision import VisionConfig
from mmtrain.models.vision_config import resnet_vision
from mmtrain.nn import TransformerConfig


def _clip(
    *,
    embed_dim: int,
    vision: tuple[int, int],
    text: tuple[int, int],
    patch_size: int,
    image_size: int = 224,
    head_dim: int = 64,
    ff_dim: int | None = None,
) -> ClipConfig:
    """OpenAI's CLIP at a size: (width, layers) of both towers."""
    (vision_dim, vision_layers), (text_dim, text_layers) = vision, text
    tower = TransformerConfig(
        dim=vision_dim, num_layers=vision_layers, num_heads=vision_dim // head_dim, ff_dim=ff_dim
    )
    encoder = TransformerConfig(
        dim=text_dim,
        num_layers=text_layers,
        num_heads=text_dim // 64,
        mask="causal",
        init="scaled",
    )
    return ClipConfig(
        vision=VisionConfig(transformer=tower, image_size=image_size, patch_size=patch_size),
        text=TextConfig(transformer=encoder),
        embed_dim=embed_dim,
    )


def _resnet(
    *,
    embed_dim: int,
    layers: tuple[int, int, int, int],
    text_dim: int,
    width: int = 64,
    image_size: int = 224,
) -> ClipConfig:
    """OpenAI's CLIP of a ResNet."""
    shape = _clip(embed_dim=embed_dim, vision=(64, 1), text=(text_dim, 12), patch_size=32)
    trunk = ResNetTrunk(layers=layers, width=width, num_heads=width // 2)
    return replace(shape, vision=resnet_vision(trunk, image_size=image_size))


def _siglip(
    *,
    dim: int,
    num_layers: int,
    num_heads: int,
    ff_dim: int,
    patch_size: int,
    image_size: int,
    context_length: int = 64,
) -> ClipConfig:
    """SigLIP at a size: both towers alike, attention pooling, no causal mask, a bias of logits.

    Zhai et al. 2023, arXiv:2303.15343.
    """
    core = TransformerConfig(
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        ff_dim=ff_dim,
        norm_eps=1e-6,
    )
    vision = VisionConfig(
        transformer=core,
        image_size=image_size,
        patch_size=patch_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        patch_bias=True,
        class_token=False,
        embed_norm=False,
        pool="attention",
        pool_norm="before",
        projection=False,
    )
    text = TextConfig(
        transformer=replace(core, activation="gelu"),
        vocab_size=32000,
        context_length=context_length,
        end_token_id=1,
        pool="last",
        mask_padding=False,
        projection_bias=True,
    )
    return ClipConfig(
        vision=vision,
        text=text,
        embed_dim=dim,
        init_logit_scale=math.log(10.0),
        init_logit_bias=-10.0,
    )


def _modern(
    *,
    embed_dim: int,
    vision: tuple[int, int],
    text: tuple[int, int],
    patch_size: int,
    head_dim: int = 64,
) -> ClipConfig:
    """What language models settled on, in both towers: rotary positions, RMSNorm, SwiGLU,
    grouped-query attention (4 query heads a key head where they divide), qk-norm; registers and
    mean pooling for images."""

    def core(width: int, num_layers: int, *, causal: bool) -> TransformerConfig:
        num_heads = width // head_dim
        return TransformerConfig(
            dim=width,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_heads // 4 if num_heads % 4 == 0 else num_heads // 2,
            activation="swiglu",
            norm="rms",
            norm_eps=1e-6,
            qk_norm="rms",
            qkv_bias=False,
            out_bias=False,
            ff_bias=False,
            mask="causal" if causal else "full",
            init="scaled",
        )

    return ClipConfig(
        vision=VisionConfig(
            transformer=core(*vision, causal=False),
            patch_size=patch_size,
            positions="rope_2d",
            class_token=False,
            num_registers=4,
            embed_norm=False,
            pool="mean",
            pool_norm="before",
        ),
        text=TextConfig(transformer=core(*text, causal=True), positions="rope"),
        embed_dim=embed_dim,
    )


_small = partial(_clip, embed_dim=384, vision=(384, 12), text=(384, 12))
_medium = partial(_clip, embed_dim=512, vision=(512, 12), text=(512, 12))
_base = partial(_clip, embed_dim=512, vision=(768, 12), text=(512, 12))
_large = partial(_clip, embed_dim=768, vision=(1024, 24), text=(768, 12))
_huge = partial(_clip, embed_dim=1024, vision=(1280, 32), text=(1024, 24), head_dim=80)
_giant = partial(_clip, embed_dim=1024, vision=(1408, 40), text=(1024, 24), head_dim=88)
_big_giant = partial(_clip, embed_dim=1280, vision=(1664, 48), text=(1280, 32), head_dim=104)
_siglip_base = partial(_siglip, dim=768, num_layers=12, num_heads=12, ff_dim=3072, patch_size=16)
_siglip_large = partial(_siglip, dim=1024, num_layers=24, num_heads=16, ff_dim=4096, patch_size=16)
_siglip_so400m = partial(_siglip, dim=1152, num_layers=27, num_heads=16, ff_dim=4304, patch_size=14)
_modern_small = partial(_modern, embed_dim=384, vision=(384, 12), text=(384, 6))
_modern_base = partial(_modern, embed_dim=512, vision=(768, 12), text=(512, 6))
_modern_large = partial(_modern, embed_dim=768, vision=(1024, 24), text=(768, 12))

_BUILDERS: dict[str, Callable[[], ClipConfig]] = {
    "RN50": partial(_resnet, embed_dim=1024, layers=(3, 4, 6, 3), text_dim=512),
    "RN101": partial(_resnet, embed_dim=512, layers=(3, 4, 23, 3), text_dim=512),
    "RN50x4": partial(
        _resnet, embed_dim=640, layers=(4, 6, 10, 6), width=80, image_size=288, text_dim=640
    ),
    "RN50x16": partial(
        _resnet, embed_dim=768, layers=(6, 8, 18, 8), width=96, image_size=384, text_dim=768
    ),
    "RN50x64": partial(
        _resnet, embed_dim=1024, layers=(3, 15, 36, 10), width=128, image_size=448, text_dim=1024
    ),
    "ViT-S-32": partial(_small, patch_size=32),
    "ViT-S-16": partial(_small, patch_size=16),
    "ViT-M-32": partial(_medium, patch_size=32),
    "ViT-M-16": partial(_medium, patch_size=16),
    "ViT-B-32": partial(_base, patch_size=32),
    "ViT-B-32-256": partial(_base, patch_size=32, image_size=256),
    "ViT-B-16": partial(_base, patch_size=16),
    "ViT-L-16": partial(_large, patch_size=16),
    "ViT-L-14": partial(_large, patch_size=14),
    "ViT-L-14-336": partial(_large, patch_size=14, image_size=336),
    "ViT-H-14": partial(_huge, patch_size=14),
    "ViT-H-14-378": partial(_huge, patch_size=14, image_size=378),
    "ViT-g-14": partial(_giant, patch_size=14, ff_dim=6144),
    "ViT-bigG-14": partial(_big_giant, patch_size=14, ff_dim=8192),
    "ViT-B-16-SigLIP": partial(_siglip_base, image_size=224),
    "ViT-B-16-SigLIP-256": partial(_siglip_base, image_size=256),
    "ViT-B-16-SigLIP-384": partial(_siglip_base, image_size=384),
    "ViT-B-16-SigLIP-512": partial(_siglip_base, image_size=512),
    "ViT-L-16-SigLIP-256": partial(_siglip_large, image_size=256),
    "ViT-L-16-SigLIP-384": partial(_siglip_large, image_size=384),
    "ViT-SO400M-14-SigLIP": partial(_siglip_so400m, image_size=224, context_length=16),
    "Modern-S-16": partial(_modern_small, patch_size=16),
    "Modern-B-16": partial(_modern_base, patch_size=16),
    "Modern-L-14": partial(_modern_large, patch_size=14),
}
QUICKGELU = "-quickgelu"
_WITH_QUICKGELU = (
    *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
    *("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-bigG-14"),
)

MODEL_NAMES = (*_BUILDERS, *(name + QUICKGELU for name in _WITH_QUICKGELU))
"""Every name that `named_model` knows."""


def named_model(name: str) -> ClipConfig:
    """The architecture of this name; the weights are another matter.

    `...-quickgelu` are the activations that OpenAI's, MetaCLIP's and DFN's weights were trained
    with: the wrong one costs accuracy without a word.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in MODEL_NAMES:
        raise ValueError(f'name = "{name}" is unknown; use one of {", ".join(MODEL_NAMES)}')
    config = _BUILDERS[name.removesuffix(QUICKGELU)]()
    if not name.endswith(QUICKGELU):
        return config
    text = replace(config.text.transformer, activation="quick_gelu")
    config = replace(config, text=replace(config.text, transformer=text))
    if config.vision.trunk is not None:  # its activation is ReLU
        return config
    vision = replace(config.vision.transformer, activation="quick_gelu")
    return replace(config, vision=replace(config.vision, transformer=vision))
