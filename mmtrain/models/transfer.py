"""Weights of one model into another of nearly the same shape: the start of a fine-tuning."""

import torch
from torch import Tensor

from mmtrain.models.clip import Clip
from mmtrain.models.tower import interpolate_positions
from mmtrain.models.trunks.resnet import STRIDE
from mmtrain.models.vision import VisionConfig

POSITIONS = "vision.embed.positional_embedding"
PLACES = "vision.embed.trunk.attnpool.positional_embedding"
"""Those of a ResNet's last features, behind that of their mean."""


@torch.no_grad()
def copy_weights(source: Clip, target: Clip) -> None:
    """Copy all weights, the logits' scale too, in place.

    Another image size interpolates the learned positions; a longer or shorter context of texts
    keeps the positions that both have. A bias of the logits, or learned vectors of texts, that the
    source lacks keep their initial value.

    Raises:
        ValueError: the towers differ otherwise.
    """
    found, wanted = source.state_dict(), target.state_dict()
    for name in ("logit_bias", "text.embed.context"):
        if name in wanted.keys() - found.keys():
            found[name] = wanted[name].clone()
    if "logit_bias" not in wanted:
        found.pop("logit_bias", None)
    _resize_positions(found, wanted, source.config.vision, target.config.vision)
    text = "text.embed.positional_embedding"
    if text in found and text in wanted and found[text].size(1) == wanted[text].size(1):
        shared = min(found[text].size(0), wanted[text].size(0))
        table = wanted[text].clone()
        table[:shared] = found[text][:shared]
        found[text] = table
    _load(found, target)


@torch.no_grad()
def copy_image_tower(config: VisionConfig, tensors: dict[str, Tensor], target: Clip) -> None:
    """Copy an image tower without a projection, in place; the rest keeps its initial values.

    Another image size interpolates the learned positions.

    Args:
        config: of the tower.
        tensors: its state dict.
        target: a model whose image tower it becomes.

    Raises:
        ValueError: the towers differ otherwise.
    """
    wanted = target.state_dict()
    found = {f"vision.{name}": x for name, x in tensors.items()}
    _resize_positions(found, wanted, config, target.config.vision)
    kept = {
        name: x
        for name, x in wanted.items()
        if not name.startswith("vision.") or name.startswith("vision.head.projection.")
    }
    _load(kept | found, target)


def _resize_positions(
    found: dict[str, Tensor], wanted: dict[str, Tensor], source: VisionConfig, target: VisionConfig
) -> None:
    """Interpolate the image tower's learned positions where both have them."""
    for name, num_first, old, new in (
        (POSITIONS, target.num_positioned_prefix, source.grid_size, target.grid_size),
        (PLACES, 1, source.image_size // STRIDE, target.image_size // STRIDE),
    ):
        if name not in found or name not in wanted:
            continue
        table = found[name]
        grid = interpolate_positions(table[num_first:], (old, old), (new, new))
        found[name] = torch.cat([table[:num_first], grid])


def _load(found: dict[str, Tensor], target: Clip) -> None:
    wanted = target.state_dict()
    differing = [
        name
        for name in sorted(found.keys() | wanted.keys())
        if name not in found or name not in wanted or found[name].shape != wanted[name].shape
    ]
    if differing:
        raise ValueError(
            f"{len(differing)} tensors of the model differ from those it starts from, the first is "
            f"{differing[0]}; leave the towers' shapes as they are"
        )
    target.load_state_dict(found)
