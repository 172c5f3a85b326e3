"""Tokens of an image by convolutions instead of one linear map of each patch.

Xiao et al. 2021, "Early convolutions help transformers see better", arXiv:2106.14881.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.models.tower import draw_uniform, filled, reset_norms
from mmtrain.models.vision_config import VisionConfig


class Halving(nn.Module):
    """A 3x3 convolution of stride 2, a norm over channels and a ReLU."""

    def __init__(self, before: int, after: int, *, norm: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.norm = norm

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H / 2, W / 2, C']."""
        x_BHWC = self.convolution(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return F.relu(self.norm(x_BHWC))


class ConvStem(nn.Module):
    """Convolutions that halve an image until a patch is one place, and a linear map of each.

    The norms are those of the blocks, where the paper has batch norms: what a step computes does
    not hang on how its batch is cut into microbatches and over ranks.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        build_norm = config.transformer.build_norm
        self.halvings = nn.Sequential(
            *(
                Halving(before, after, norm=build_norm(after))
                for before, after in pairwise((3, *config.stem_channels))
            )
        )
        self.projection = nn.Linear(
            config.stem_channels[-1], config.transformer.dim, bias=config.patch_bias
        )
        self.mean, self.std = config.mean, config.std

    def forward(self, images_BCHW: Tensor, kept_BP: Tensor | None = None) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, P, D]; `kept_BP` are the indices of the patches to embed."""
        dtype = self.projection.weight.dtype
        pixels = images_BCHW.permute(0, 2, 3, 1).to(torch.promote_types(dtype, torch.float32))
        mean, std = (filled(values, like=pixels) for values in (self.mean, self.std))
        x_BHWC = self.halvings(((pixels / 255 - mean) / std).to(dtype))
        x_BPC = x_BHWC.flatten(1, 2)
        if kept_BP is not None:
            x_BPC = x_BPC.gather(1, kept_BP[:, :, None].expand(-1, -1, x_BPC.size(-1)))
        return self.projection(x_BPC)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, see VisionTower.init_weights."""
        for part in self.halvings.modules():
            if isinstance(part, nn.Conv2d):
                std = (2 / part.weight[0].numel()) ** 0.5
                part.weight.normal_(0.0, std, generator=generator)
            elif isinstance(part, Halving):
                reset_norms(part.norm)
        draw_uniform(self.projection.weight, self.projection.bias, generator)
