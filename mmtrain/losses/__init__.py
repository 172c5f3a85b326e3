"""Losses of features: pure maths, plus an optional process group.

Suffixes beyond the legend in `mmtrain.nn`: B this rank's pairs, A the pairs of all ranks, X and Y
the rows and columns of one block of logits.
"""

from mmtrain.losses._blocks import block_shape
from mmtrain.losses.affinity import affinity_loss, feature_loss_B
from mmtrain.losses.clip import clip_loss
from mmtrain.losses.siglip import siglip_loss
from mmtrain.losses.siglip_parts import SiglipByParts, SiglipGradients

__all__ = [
    "SiglipByParts",
    "SiglipGradients",
    "affinity_loss",
    "block_shape",
    "clip_loss",
    "feature_loss_B",
    "siglip_loss",
]
