"""The arguments behind timm's ViT names: what a name leaves unsaid.

https://github.com/huggingface/pytorch-image-models, timm/models/vision_transformer.py; tests
compare each with the installed timm.
"""

import re
from typing import Any

from mmtrain.errors import UsageError

_SIZES: dict[str, dict[str, Any]] = {
    "xsmall": {"embed_dim": 256, "depth": 10, "num_heads": 4},
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "medium": {"embed_dim": 512, "depth": 12, "num_heads": 8},
    "betwixt": {"embed_dim": 640, "depth": 12, "num_heads": 10},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "so150m": {"embed_dim": 896, "depth": 18, "num_heads": 14, "mlp_ratio": 2.572},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "so400m": {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11},
    "giantopt": {"embed_dim": 1536, "depth": 40, "num_heads": 16},
    "gigantic": {"embed_dim": 1664, "depth": 48, "num_heads": 16, "mlp_ratio": 64 / 13},
}
_MEAN_POOL = {"class_token": False, "global_pool": "avg", "fc_norm": False}
_FAMILIES: dict[str, dict[str, Any]] = {
    "": {},
    "clip_": {"pre_norm": True, "norm_eps": 1e-5},
    "clip_quickgelu_": {"pre_norm": True, "norm_eps": 1e-5, "act_layer": "quick_gelu"},
    "siglip_": {"class_token": False, "global_pool": "map"},
    "siglip_gap_": _MEAN_POOL,
    "gap_": _MEAN_POOL | {"qkv_bias": False, "init_values": 1e-6},
    "reg4_map_": {"class_token": False, "global_pool": "map", "reg_tokens": 4},
    "reg4_gap_": {
        "class_token": False,
        "global_pool": "avg",
        "reg_tokens": 4,
        "no_embed_class": True,
    },
    "dinov2": {"init_values": 1e-5},
    "reg4_dinov2": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
}
_NAME = re.compile(
    rf"vit_({'|'.join(_SIZES)})_patch(\d+)_((?:(?:clip_quickgelu|clip|siglip_gap|siglip|gap|reg4_map|"
    r"reg4_gap)_)?)(\d+)"
)
_DINO = re.compile(rf"vit_({'|'.join(_SIZES)})_patch(\d+)_((?:reg4_)?dinov2)()")
_DINO_SIZE = 518
# The published SigLIP weights were converted with the approximate GELU for these alone.
_TANH = re.compile(r"vit_(base_patch32|large_patch16|so400m_patch16|giantopt_patch16)_siglip_.*")
_EXACT = re.compile(r"vit_large_patch16_siglip_(gap_)?(256|384)")

_SQUARES = {
    "": "tiny_16_224 tiny_16_384 small_32_224 small_32_384 small_16_224 small_16_384 small_8_224 "
    "base_32_224 base_32_384 base_16_224 base_16_384 base_8_224 large_32_224 large_32_384 "
    "large_16_224 large_16_384 large_14_224 huge_14_224 giant_14_224 gigantic_14_224",
    "clip_": "xsmall_16_224 medium_32_224 medium_16_224 betwixt_32_224 base_32_224 base_32_256 "
    "base_32_384 base_32_448 base_16_224 base_16_384 large_14_224 large_14_336 huge_14_224 "
    "huge_14_336 huge_14_378 giant_14_224 gigantic_14_224 gigantic_14_378",
    "clip_quickgelu_": "base_32_224 base_16_224 large_14_224 large_14_336 huge_14_224 huge_14_378 "
    "gigantic_14_224",
    "siglip_": "base_32_256 base_16_224 base_16_256 base_16_384 base_16_512 large_16_256 "
    "large_16_384 large_16_512 so400m_14_224 so400m_14_378 so400m_14_384 so400m_16_256 "
    "so400m_16_384 so400m_16_512 giantopt_16_256 giantopt_16_384",
    "siglip_gap_": "base_32_256 base_16_224 base_16_256 base_16_384 base_16_512 large_16_256 "
    "large_16_384 large_16_512 so400m_14_224 so400m_14_378 so400m_14_384 so400m_14_448 "
    "so400m_14_896 so400m_16_256 so400m_16_384 so400m_16_512 giantopt_16_256 giantopt_16_384",
    "gap_": "medium_16_240 medium_16_256 medium_16_384",
    "reg4_map_": "so150m_16_256",
    "reg4_gap_": "base_16_256",
    "dinov2": "small_14 base_14 large_14",
    "reg4_dinov2": "small_14 base_14 large_14",
}


def _spell(family: str, square: str) -> str:
    size, patch, *image = square.split("_")
    return f"vit_{size}_patch{patch}_{family}{''.join(image)}"


TIMM_NAMES = tuple(
    _spell(family, square) for family, squares in _SQUARES.items() for square in squares.split()
)
"""Every name that `timm_args` knows."""


def is_own_timm_tower(name: Any) -> bool:
    """Whether `timm_args` knows the name, of which a tag is no part."""
    return isinstance(name, str) and name.partition(".")[0] in TIMM_NAMES


def timm_args(name: str, *, source: str = "timm") -> dict[str, Any]:
    """The arguments of timm's VisionTransformer that a name stands for, img_size among them.

    `norm_eps` stands for norm_layer. A tag (`.webli`) names weights, not a shape, and is left out.

    Raises:
        UsageError: the name is unknown.
    """
    stem = name.partition(".")[0]
    match = _NAME.fullmatch(stem) or _DINO.fullmatch(stem)
    if match is None or stem not in TIMM_NAMES:
        raise UsageError(
            f'{source}: timm_model_name = "{name}" is not supported; we read timm\'s '
            "vit_*_patch*_[clip_|clip_quickgelu_|siglip_|siglip_gap_]SIZE and its DINOv2"
        )
    size, patch, family, image = match.groups()
    args: dict[str, Any] = {"patch_size": int(patch), "img_size": int(image or _DINO_SIZE)}
    args |= _SIZES[size] | _FAMILIES[family]
    if _TANH.fullmatch(stem) and not _EXACT.fullmatch(stem):
        args["act_layer"] = "gelu_tanh"
    return args
