"""CLIP's ResNet, up to its attention pooling. Radford et al. 2021, arXiv:2103.00020, section 2.4.

Parameters have the names of the published checkpoints.
"""

from collections import OrderedDict
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.models.tower import interpolate_positions
from mmtrain.models.trunks.config import ResNetTrunk

EXPANSION = 4
"""Channels of a block's output by those of its middle."""
STRIDE = 32
"""Pixels a side of a place of the last features."""


def _convolution(num_in: int, num_out: int, size: int = 1, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, size, stride=stride, padding=size // 2, bias=False)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; a stride is an average pooling before the last of them."""

    def __init__(self, num_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        num_out = EXPANSION * width
        self.stride = stride
        self.conv1, self.bn1 = _convolution(num_in, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _convolution(width, num_out), nn.BatchNorm2d(num_out)
        self.downsample = (
            nn.Sequential(
                OrderedDict([("0", _convolution(num_in, num_out)), ("1", nn.BatchNorm2d(num_out))])
            )
            if stride > 1 or num_in != num_out
            else None
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 4 width, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x_BCHW)))
        out = F.relu(self.bn2(self.conv2(out)))
        if self.stride > 1:
            out = F.avg_pool2d(out, self.stride)
            x_BCHW = F.avg_pool2d(x_BCHW, self.stride)
        if self.downsample is not None:
            x_BCHW = self.downsample(x_BCHW)
        return F.relu(self.bn3(self.conv3(out)) + x_BCHW)


class PlacePool(nn.Module):
    """Attention of the places' mean over the mean and all places, without the output's map, which
    is the tower's projection."""

    no_decay: ClassVar[tuple[str, ...]] = ("positional_embedding",)

    def __init__(self, dim: int, *, num_heads: int, grid_size: int) -> None:
        super().__init__()
        self.num_heads, self.grid_size = num_heads, grid_size
        self.positional_embedding = nn.Parameter(torch.empty(grid_size**2 + 1, dim))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, D, rows, columns] -> [B, D]; another grid than the native one interpolates the
        positions."""
        grid = x_BCHW.size(-2), x_BCHW.size(-1)
        x_BPD = x_BCHW.flatten(2).transpose(1, 2)
        native = (self.grid_size, self.grid_size)
        table_PD = interpolate_positions(self.positional_embedding[1:], native, grid)
        places_PD = torch.cat([self.positional_embedding[:1], table_PD])
        x_BPD = torch.cat([x_BPD.mean(1, keepdim=True), x_BPD], dim=1) + places_PD.to(x_BPD.dtype)
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in (
                (self.q_proj, x_BPD[:, :1]),
                (self.k_proj, x_BPD),
                (self.v_proj, x_BPD),
            )
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)


class ResNet(nn.Module):
    """Normalised images to the attention-pooled features of their last stage."""

    def __init__(self, config: ResNetTrunk, *, image_size: int) -> None:
        super().__init__()
        width = config.width
        self.conv1 = _convolution(3, width // 2, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = _convolution(width // 2, width // 2, 3), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = _convolution(width // 2, width, 3), nn.BatchNorm2d(width)
        num_in = width
        for stage, num_blocks in enumerate(config.layers):
            middle = width * 2**stage
            blocks = []
            for block in range(num_blocks):
                stride = 2 if stage and not block else 1
                blocks.append(Bottleneck(num_in, middle, stride=stride))
                num_in = EXPANSION * middle
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attnpool = PlacePool(
            config.dim, num_heads=config.num_heads, grid_size=image_size // STRIDE
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 32 width]."""
        for number in (1, 2, 3):
            convolution, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            x_BCHW = F.relu(norm(convolution(x_BCHW)))
        x_BCHW = F.avg_pool2d(x_BCHW, 2)
        for stage in (1, 2, 3, 4):
            x_BCHW = getattr(self, f"layer{stage}")(x_BCHW)
        return self.attnpool(x_BCHW)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw initial weights from torch's generator: convolutions as torch does, blocks that
        begin as their shortcut, and N(w^-.5) for the pooling."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.reset_parameters()
            if isinstance(module, Bottleneck):
                module.bn3.weight.zero_()
        std = self.attnpool.q_proj.in_features**-0.5
        for layer in (self.attnpool.q_proj, self.attnpool.k_proj, self.attnpool.v_proj):
            layer.weight.normal_(0.0, std)
        self.attnpool.positional_embedding.normal_(0.0, std)
