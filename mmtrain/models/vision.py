"""The vision tower: a ViT over uint8 images."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.models.conv_stem import ConvStem
from mmtrain.models.tower import (
    draw_uniform,
    filled,
    init_linears,
    interpolate_positions,
    reset_norms,
    sinusoidal_positions,
)
from mmtrain.models.trunks.image import ImageTrunk
from mmtrain.models.vision_config import VisionConfig
from mmtrain.nn import AttentionPool, Transformer, pool_tokens
from mmtrain.nn.rope import RopeTable, rope_1d, rope_2d

FP16_SCALE = 128
"""Between pixels and the weight that acts on them, in fp16: a power of two, so nothing rounds."""


class PatchEmbed(nn.Module):
    """Linear map of uint8 patches, the normalisation of the pixels folded in functionally.

    The weight keeps its published meaning (it acts on normalised pixels). Columns run over (row,
    column, channel) of a patch, which in a channels_last image are runs of contiguous memory;
    unfold + Linear takes 14 ms where Conv2d takes 206 (32x32 patches, batch 16, bf16, one core).
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        fan_in = 3 * config.patch_size**2
        self.weight = nn.Parameter(torch.empty(config.transformer.dim, fan_in))
        self.bias = nn.Parameter(torch.empty(config.transformer.dim)) if config.patch_bias else None
        self.mean, self.std = config.mean, config.std

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias that act on pixels minus 128: the same function as on normalised pixels.

        Subtracting 128 keeps the pixels exact in bf16 and halves the rounding of the products. Both
        are in fp32 at least: the bias is a sum over a whole patch of products with the same few
        constants, whose rounding to bf16 would not average out.
        """
        repeat, device = self.patch_size**2, self.weight.device
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        mean, std = (filled(values, like=weight) for values in (self.mean, self.std))
        with torch.autocast(device.type, enabled=False):
            bias = weight @ ((128 / 255 - mean) / std).repeat(repeat)
        bias = bias if self.bias is None else bias + self.bias
        return weight * (1 / (255 * std)).repeat(repeat), bias

    def forward(self, images_BCHW: Tensor, kept_BP: Tensor | None = None) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, P, D]; `kept_BP` are the indices of the patches to embed."""
        patches = self.patches(images_BCHW)
        if kept_BP is not None:
            patches = patches.gather(1, kept_BP[:, :, None].expand(-1, -1, patches.size(-1)))
        device = patches.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.weight.dtype
        weight, bias = self.folded()
        pixels = patches.to(dtype).sub_(128)
        if dtype == torch.float16:
            # Pixels of 128 make small weights and large gradients: a quarter of a ViT-B/32's would
            # be subnormal, and its gradient the first of the model to overflow.
            pixels, weight = pixels.mul_(1 / FP16_SCALE), weight * FP16_SCALE
        return F.linear(pixels, weight.to(dtype), bias.to(dtype))

    def patches(self, images_BCHW: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> the patches' pixels [B, P, size * size * 3]."""
        B, C, height, width = images_BCHW.shape
        size, rows, columns = self.patch_size, height // self.patch_size, width // self.patch_size
        pixels = images_BCHW.permute(0, 2, 3, 1).reshape(B, rows, size, columns, size * C)
        return pixels.transpose(2, 3).reshape(B, rows * columns, size * size * C)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, see VisionTower.init_weights."""
        draw_uniform(self.weight, self.bias, generator)


class VisionEmbed(nn.Module):
    """Image to tokens: patches, positions, class token, registers, norm."""

    no_decay: ClassVar[tuple[str, ...]] = ("class_embedding", "registers", "positional_embedding")

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.transformer.dim
        self.patch = ConvStem(config) if config.stem_channels else PatchEmbed(config)
        self.class_embedding = nn.Parameter(torch.empty(dim)) if config.class_token else None
        self.registers = (
            nn.Parameter(torch.empty(config.num_registers, dim)) if config.num_registers else None
        )
        num_positions = config.num_patches + config.num_positioned_prefix
        self.positional_embedding = (
            nn.Parameter(torch.empty(num_positions, dim)) if config.positions == "learned" else None
        )
        self.norm = config.transformer.build_norm(dim) if config.embed_norm else None

    def _positions(self, grid: tuple[int, int]) -> Tensor | None:
        """Positions of the patches [P, D]."""
        if self.positional_embedding is not None:
            native = (self.config.grid_size, self.config.grid_size)
            table_PD = self.positional_embedding[self.config.num_positioned_prefix :]
            return interpolate_positions(table_PD, native, grid)
        if self.config.positions == "sinusoidal":
            dim = self.config.transformer.dim
            return sinusoidal_positions(grid[0] * grid[1], dim, like=next(self.patch.parameters()))
        return None

    def _prefix(self) -> Tensor | None:
        """Class token and registers with their positions, [T, D]."""
        class_1D = None if self.class_embedding is None else self.class_embedding[None]
        tokens = [token for token in (class_1D, self.registers) if token is not None]
        if not tokens:
            return None
        prefix_TD, num_placed = torch.cat(tokens), self.config.num_positioned_prefix
        if self.positional_embedding is None or not num_placed:
            return prefix_TD
        placed_TD = prefix_TD[:num_placed] + self.positional_embedding[:num_placed]
        return torch.cat([placed_TD, prefix_TD[num_placed:]])

    def forward(self, images_BCHW: Tensor, kept_BP: Tensor | None = None) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, T, D].

        Raises:
            ValueError: the images are not uint8 or no multiple of the patch size.
        """
        size = self.config.patch_size
        height, width = images_BCHW.shape[-2:]
        if images_BCHW.dtype != torch.uint8:
            raise ValueError(
                f"images are {images_BCHW.dtype} but must be uint8: the model normalises them"
            )
        if self.config.drop_edge:
            images_BCHW = images_BCHW[..., : height - height % size, : width - width % size]
        elif height % size or width % size:
            raise ValueError(f"an image of {height}x{width} pixels is no multiple of {size}")
        x_BPD = self.patch(images_BCHW, kept_BP)
        patches_PD = self._positions((height // size, width // size))
        if patches_PD is not None:
            x_BPD = x_BPD + (patches_PD if kept_BP is None else patches_PD[kept_BP])
        prefix_TD = self._prefix()
        if prefix_TD is not None:
            prefix_BTD = prefix_TD.to(x_BPD.dtype).expand(x_BPD.size(0), -1, -1)
            x_BPD = torch.cat([prefix_BTD, x_BPD], dim=1)
        return x_BPD if self.norm is None else self.norm(x_BPD)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, see VisionTower.init_weights."""
        self.patch.init_weights(generator)
        for table in (self.class_embedding, self.registers, self.positional_embedding):
            if table is not None:
                table.normal_(0.0, self.config.transformer.dim**-0.5, generator=generator)
        reset_norms(self.norm)


class VisionHead(nn.Module):
    """Tokens to one embedding: norm, pool, projection."""

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        core, dim = config.transformer, config.transformer.dim
        self.norm = core.build_norm(dim) if config.trunk is None else nn.Identity()
        self.pool = (
            AttentionPool(
                dim,
                num_heads=core.num_heads,
                ff_dim=core.hidden_dim,
                norm=core.build_norm(dim),
                activation=core.activation,
            )
            if config.pool == "attention"
            else None
        )
        self.projection = (
            nn.Linear(dim, embed_dim, bias=config.projection_bias) if config.projection else None
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, E]."""
        if self.config.pool_norm == "before":
            x_BTD = self.norm(x_BTD)
        if self.pool is not None:
            x_BD = self.pool(x_BTD[:, self.config.num_prefix :])
        else:
            kind = "first" if self.config.pool == "first" else "mean"
            x_BD = pool_tokens(x_BTD, kind, skip=self.config.num_prefix)
        if self.config.pool_norm == "after":
            x_BD = self.norm(x_BD)
        return x_BD if self.projection is None else self.projection(x_BD)


def build_embed(config: VisionConfig) -> VisionEmbed | ImageTrunk:
    """What makes tokens of images."""
    if config.trunk is None:
        return VisionEmbed(config)
    return ImageTrunk(
        config.trunk,
        image_size=config.image_size,
        dim=config.transformer.dim,
        mean=config.mean,
        std=config.std,
    )


class VisionTower(nn.Module):
    """embed -> transformer -> head. A pipeline stage holds None for what another stage has."""

    embed: VisionEmbed | ImageTrunk | None
    head: VisionHead | None

    def __init__(self, config: VisionConfig, *, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.embed = build_embed(config)
        self.transformer: Transformer = Transformer(config.transformer)
        self.head = VisionHead(config, embed_dim)

    def rope_table(
        self, grid: tuple[int, int], kept_BP: Tensor | None, device: torch.device
    ) -> RopeTable | None:
        """Rotary tables of all tokens; prefix tokens are not rotated."""
        if self.config.positions not in ("rope", "rope_2d"):
            return None
        index = torch.arange(grid[0] * grid[1], device=device)
        index = index if kept_BP is None else index[kept_BP]
        head_size, theta = self.config.transformer.head_size, self.config.rope_theta
        if self.config.positions == "rope":
            position = F.pad(index + 1, (self.config.num_prefix, 0))
            return rope_1d(position, head_size, theta=theta)
        row, column = index // grid[1], index % grid[1]
        prefix = (self.config.num_prefix, 0)
        return rope_2d(F.pad(row, prefix), F.pad(column, prefix), head_size, theta=theta)

    def forward(
        self, x: Tensor, *, kept_BP: Tensor | None = None, keep_BL2: Tensor | None = None
    ) -> Tensor:
        """uint8 [B, 3, H, W] (or tokens from the stage before) -> [B, E] (or tokens)."""
        grid = (self.config.grid_size, self.config.grid_size)
        if self.embed is not None:
            size = self.config.patch_size
            grid = (x.size(-2) // size, x.size(-1) // size)
            x = self.embed(x, kept_BP)
        x = self.transformer(
            x,
            mask=self.transformer.build_mask(x.size(1), device=x.device),
            rope=self.rope_table(grid, kept_BP, x.device),
            keep_BL2=keep_BL2,
        )
        return x if self.head is None else self.head(x)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights (w = dim): open_clip's table for vision towers.

        | weight                                | drawn from                    |
        |---------------------------------------|-------------------------------|
        | patch embedding, its bias             | U(+-fan_in^-.5)               |
        | a stem's convolutions, 2015 by He     | (2 / fan_in)^.5 N(1)          |
        | class token, registers, positions     | w^-.5 N(1)                    |
        | attention pooling: query, linears     | w^-.5 N(1), U(+-fan_in^-.5)   |
        | projection, its bias                  | w^-.5 N(1), 0                 |
        | norms                                 | identity                      |
        | blocks                                | Transformer.init_weights      |
        | trunk                                 | whoever owns it               |
        """
        assert self.embed is not None and self.head is not None, "a slice cannot be initialised"
        std = self.config.transformer.dim**-0.5
        self.embed.init_weights(generator)
        self.transformer.init_weights(generator)
        reset_norms(self.head.norm, self.head.pool)
        if self.head.pool is not None:
            self.head.pool.query.normal_(0.0, std, generator=generator)
            init_linears(self.head.pool, generator)
        if self.head.projection is not None:
            self.head.projection.weight.normal_(0.0, std, generator=generator)
            if self.head.projection.bias is not None:
                self.head.projection.bias.zero_()
