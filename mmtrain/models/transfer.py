"""Weights of one model into another of nearly the same shape: the start of a fine-tuning."""

import torch

from mmtrain.models.clip import Clip
from mmtrain.models.vision import interpolate_positions

POSITIONS = "vision.embed.positional_embedding"


@torch.no_grad()
def copy_weights(source: Clip, target: Clip) -> None:
    """Copy all weights, the logits' scale too, in place.

    Another image size interpolates the learned positions; a longer or shorter context of texts
    keeps the positions that both have. A bias of the logits that the source lacks keeps its
    initial value.

    Raises:
        ValueError: the towers differ otherwise.
    """
    found, wanted = source.state_dict(), target.state_dict()
    if "logit_bias" in wanted.keys() - found.keys():
        found["logit_bias"] = wanted["logit_bias"].clone()
    if "logit_bias" not in wanted:
        found.pop("logit_bias", None)
    vision, text = target.config.vision, "text.embed.positional_embedding"
    if POSITIONS in found and POSITIONS in wanted:
        num_first = vision.num_positioned_prefix
        old, new = source.config.vision.grid_size, vision.grid_size
        table = found[POSITIONS]
        grid = interpolate_positions(table[num_first:], (old, old), (new, new))
        found[POSITIONS] = torch.cat([table[:num_first], grid])
    if text in found and text in wanted:
        shared = min(found[text].size(0), wanted[text].size(0))
        table = wanted[text].clone()
        table[:shared] = found[text][:shared]
        found[text] = table
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
