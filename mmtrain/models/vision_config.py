"""The shape of the vision tower, plain data."""

from dataclasses import dataclass
from typing import Literal

from mmtrain.limits import MOST_PIXELS, MOST_REGISTERS, check_choices, check_counts
from mmtrain.models.tower import check_encoder
from mmtrain.models.trunks.config import (
    ImageTrunkConfig,
    ResNetTrunk,
    check_beside_trunk,
    no_blocks,
)
from mmtrain.nn import TransformerConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TRUNK_VISION = {"class_token": False, "positions": "none", "embed_norm": False, "pool": "mean"}
"""What a trunk fixes of a VisionConfig."""
_BESIDE_TRUNK = ("image_size", "mean", "std", "projection", "projection_bias")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A ViT. Dosovitskiy et al. 2020, arXiv:2010.11929, and what was added to it since."""

    transformer: TransformerConfig
    """The blocks."""
    image_size: int = 224
    """Side of the square training images, pixels."""
    patch_size: int = 32
    """Side of a patch, pixels; must divide image_size, or see drop_edge."""
    drop_edge: bool = False
    """Leave out the pixels right of and below the last whole patch, as a convolution does: SigLIP
    has 27 patches of 14 in 384 pixels. False: such images are refused."""
    stem_channels: tuple[int, ...] = ()
    """Channels of convolutions that make the patches' tokens: 3x3, stride 2, a norm and a ReLU
    behind each, as many as halve a patch to one place (arXiv:2106.14881). They see further than a
    patch and learn shapes from fewer images. Empty: a linear map of each patch."""
    mean: tuple[float, ...] = CLIP_MEAN
    """Per channel, on the scale 0 to 1; images are normalised inside the model."""
    std: tuple[float, ...] = CLIP_STD
    """Per channel, on the scale 0 to 1."""
    patch_bias: bool = False
    """Bias of the patch embedding."""
    class_token: bool = True
    """A learned first token."""
    num_registers: int = 0
    """Learned tokens that no pooling reads (arXiv:2309.16588)."""
    positions: Literal["learned", "sinusoidal", "rope", "rope_2d", "none"] = "learned"
    """How patches know their place."""
    prefix_positions: Literal["none", "class", "all"] = "class"
    """Which tokens before the patches have a learned position too: none, the class token, or the
    class token and the registers."""
    rope_theta: float = 100.0
    """Base of the rotary frequencies."""
    embed_norm: bool = True
    """A norm before the first block, as OpenAI's CLIP."""
    pool: Literal["first", "mean", "attention"] = "first"
    """The class token, the mean over patches, or attention pooling of the patches (MAP)."""
    pool_norm: Literal["before", "after"] = "after"
    """Where the final norm stands."""
    projection: bool = True
    """A linear map to the shared embedding; False needs dim = embed_dim."""
    projection_bias: bool = False
    """Bias of that map."""
    patch_dropout: float = 0.0
    """Share of the patches left out in training (arXiv:2212.00794)."""
    trunk: ImageTrunkConfig | None = None
    """Another network than blocks over patches, which gives one token; model.init brings it with
    all that it fixes. None: blocks over patches."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "patch_size", "image_size", most=MOST_PIXELS)
        if self.trunk is not None:
            check_beside_trunk(self, free=_BESIDE_TRUNK, **TRUNK_VISION)
            self._check_pixels()
            return
        check_counts(self, "num_registers", least=0, most=MOST_REGISTERS)
        if self.drop_edge and self.image_size < self.patch_size:
            raise ValueError(
                f"patch_size = {self.patch_size} exceeds image_size = {self.image_size}"
            )
        if self.image_size % self.patch_size and not self.drop_edge:
            raise ValueError(
                f"patch_size = {self.patch_size} must divide image_size = {self.image_size}"
            )
        self._check_stem()
        if self.pool == "first" and not self.class_token:
            raise ValueError('pool = "first" needs class_token = true; or use mean or attention')
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout = {self.patch_dropout} must lie in [0, 1)")
        self._check_pixels()
        if self.projection_bias and not self.projection:
            raise ValueError("projection_bias = true needs projection = true")
        rope = {"rope": 2, "rope_2d": 4}.get(self.positions, 1)
        check_encoder(self.transformer, masks=("full",), rope=rope)
        heads, dim = self.transformer.num_heads, self.transformer.dim
        if self.pool == "attention" and dim % heads:
            raise ValueError(
                f'pool = "attention" needs transformer.num_heads = {heads} to divide '
                f"transformer.dim = {dim}"
            )

    def _check_stem(self) -> None:
        stem = self.stem_channels
        if stem and 2 ** len(stem) != self.patch_size:
            raise ValueError(
                f"stem_channels = {list(stem)} makes patches of 2^{len(stem)} = {2 ** len(stem)} "
                f"pixels, one halving each, but patch_size = {self.patch_size}; set either"
            )
        if min(stem, default=1) < 1:
            raise ValueError(f"stem_channels = {list(stem)} must be counts of at least 1")

    def _check_pixels(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean = {list(self.mean)} and std = {list(self.std)} must have three entries, one "
                "per channel, those of std above 0"
            )

    @property
    def grid_size(self) -> int:
        """Patches per side; of a trunk its one token."""
        return self.image_size // self.patch_size if self.trunk is None else 1

    @property
    def num_patches(self) -> int:
        """Patches of an image of image_size."""
        return self.grid_size**2

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches."""
        return int(self.class_token) + self.num_registers

    @property
    def num_tokens(self) -> int:
        """Tokens of an image of image_size."""
        return self.num_prefix + self.num_patches

    @property
    def num_positioned_prefix(self) -> int:
        """Tokens before the patches that have a learned position."""
        return {
            "none": 0,
            "class": int(self.class_token),
            "all": self.num_prefix,
        }[self.prefix_positions]

    @property
    def num_kept(self) -> int:
        """Patches that training keeps of each image."""
        return max(1, int(self.num_patches * (1 - self.patch_dropout)))


def resnet_vision(trunk: ResNetTrunk, *, image_size: int) -> VisionConfig:
    """The tower of a ResNet; the map of its pooling's output is the projection."""
    return VisionConfig(
        trunk=trunk,
        transformer=no_blocks(trunk.dim),
        image_size=image_size,
        projection=True,
        projection_bias=True,
        **TRUNK_VISION,  # pyright: ignore[reportArgumentType]
    )
