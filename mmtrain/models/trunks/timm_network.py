"""Image towers by timm, as open_clip builds them. Imported only where there is one.

https://github.com/huggingface/pytorch-image-models. Parameters have timm's names.
"""

import functools
from typing import Any

import timm
import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from mmtrain.models.trunks.building import build_as_around, declare_no_decay
from mmtrain.models.trunks.config import TimmTrunk


class TimmNetwork(nn.Module):
    """timm's model, pooled, and two layers behind it where the config asks for them."""

    def __init__(self, config: TimmTrunk, *, image_size: int, dim: int) -> None:
        super().__init__()
        self.trunk = create_trunk(config, dim=dim)
        _check_size(self.trunk, config, image_size)
        self.head = nn.ModuleDict()
        if config.head == "mlp":
            width = int(self.trunk.num_features)
            self.head["mlp"] = Mlp(width, 2 * dim, dim, bias=(True, config.head_bias))  # pyright: ignore
        declare_no_decay(self.trunk)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> [B, D]."""
        x_BD = self.trunk(x_BCHW)
        for layer in self.head.values():
            x_BD = layer(x_BD)
        return x_BD


def create_trunk(config: TimmTrunk, *, dim: int) -> Any:
    """timm's model without a classifier, or with one to `dim` features.

    Raises:
        ValueError: timm has none of that name, or not with that pool.
    """
    if not timm.is_model(config.name):
        raise ValueError(
            f'timm_model_name = "{config.name}" is no model of timm {timm.__version__}; correct '
            "it, or install the timm that has it"
        )
    try:
        if config.head in ("own", "none"):
            num_classes = dim if config.head == "own" else 0
            return timm.create_model(config.name, num_classes=num_classes, global_pool=config.pool)
        trunk: Any = timm.create_model(config.name)
        trunk.reset_classifier(0, **({"global_pool": config.pool} if config.pool else {}))
    except (AssertionError, TypeError) as error:  # timm raises nothing more precise
        line = (str(error).splitlines() or [type(error).__name__])[0]
        told = f'timm has no {config.name} with pool = "{config.pool}"'
        raise ValueError(f"{told}: {line}") from error
    return trunk


@functools.lru_cache
def timm_features(config: TimmTrunk, *, image_size: int, dim: int) -> int:
    """Features of timm's model, pooled, tried without memory for its weights.

    Raises:
        ValueError: timm has no such model, or not for such images.
    """
    with torch.device("meta"):
        network = build_as_around(lambda: TimmNetwork(config, image_size=image_size, dim=dim))
    return int(network.trunk.num_features)


def _check_size(trunk: Any, config: TimmTrunk, image_size: int) -> None:
    """Refuse images that the model would not take; most take any."""
    patches = getattr(trunk, "patch_embed", None)
    native = getattr(patches, "img_size", None)
    if native and getattr(patches, "strict_img_size", False) and native[0] != image_size:
        raise ValueError(
            f"image_size = {image_size}, but {config.name} of timm takes {native[0]} pixels"
        )
