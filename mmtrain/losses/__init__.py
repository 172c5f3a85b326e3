"""Contrastive losses: pure maths over features, plus an optional process group.

Suffixes beyond the legend in `mmtrain.nn`: B this rank's pairs, A the pairs of all ranks, X and Y
the rows and columns of one block of logits.
"""

from mmtrain.losses._blocks import block_shape
from mmtrain.losses.clip import clip_loss
from mmtrain.losses.siglip import siglip_loss
from mmtrain.losses.siglip_parts import SiglipByParts, SiglipGradients

__all__ = ["SiglipByParts", "SiglipGradients", "block_shape", "clip_loss", "siglip_loss"]
