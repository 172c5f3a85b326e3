"""A trunk of images where a tower has its embedding: uint8 images to one token each."""

import torch
from torch import Tensor, nn

from mmtrain.models.tower import filled
from mmtrain.models.trunks.building import build_as_around, fixed_statistics, seeded
from mmtrain.models.trunks.config import ImageTrunkConfig, TimmTrunk
from mmtrain.models.trunks.resnet import ResNet


class ImageTrunk(nn.Module):
    """Normalises the pixels and runs the trunk.

    A trunk is in eval mode in training too: batch norms keep the statistics that they came with,
    which train like no other weight, and nothing is dropped. So what a step computes does not hang
    on how its batch is cut into microbatches and over ranks.
    """

    def __init__(
        self,
        config: ImageTrunkConfig,
        *,
        image_size: int,
        dim: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.config, self.image_size, self.dim = config, image_size, dim
        self.mean, self.std = mean, std
        self.trunk = build_image_trunk(config, image_size=image_size, dim=dim)

    def train(self, mode: bool = True) -> "ImageTrunk":
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, images_BCHW: Tensor, kept_BP: Tensor | None = None) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, 1, D].

        Raises:
            ValueError: the images are not uint8, or patches are to be left out.
        """
        if images_BCHW.dtype != torch.uint8:
            raise ValueError(
                f"images are {images_BCHW.dtype} but must be uint8: the model normalises them"
            )
        if kept_BP is not None:
            raise ValueError("a trunk sees whole images: kept_BP is for towers of our own blocks")
        pixels = images_BCHW.float() / 255
        mean, std = (filled(each, like=pixels)[:, None, None] for each in (self.mean, self.std))
        pixels = (pixels - mean) / std
        return self.trunk(pixels.to(next(self.parameters()).dtype))[:, None]

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights as whoever owns the trunk does."""
        with seeded(generator):
            fresh = build_image_trunk(self.config, image_size=self.image_size, dim=self.dim)
            if isinstance(fresh, ResNet):  # a library's is drawn where it is built
                fresh.init_weights()
        self.trunk.load_state_dict(fresh.state_dict())


def build_image_trunk(config: ImageTrunkConfig, *, image_size: int, dim: int) -> nn.Module:
    """Normalised images [B, 3, H, W] -> [B, D].

    Raises:
        ValueError: the trunk's library has no such model, or not for such images.
    """
    if isinstance(config, TimmTrunk):
        from mmtrain.models.trunks.timm_network import TimmNetwork

        trunk = build_as_around(lambda: TimmNetwork(config, image_size=image_size, dim=dim))
        return fixed_statistics(trunk).eval()
    return fixed_statistics(ResNet(config, image_size=image_size)).eval()
