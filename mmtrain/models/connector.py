"""From a vision tower's tokens to what the answering part reads."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.data.images.tiles import WHOLE, TilesConfig
from mmtrain.limits import check_choices, check_counts
from mmtrain.models.tower import init_linears, reset_norms
from mmtrain.models.vision import VisionConfig
from mmtrain.nn import Attention, Mask


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig:
    """How an image's patches become tokens of the other width."""

    kind: Literal["linear", "mlp", "pixel_shuffle", "queries"] = "linear"
    """linear; mlp: two layers (LLaVA-1.5, arXiv:2310.03744); pixel_shuffle: the features of
    factor x factor neighbours side by side, then mlp (arXiv:2404.16821, section 3.1); queries:
    learned ones attend to all patches (arXiv:2204.14198, section 3.1)."""
    factor: int = 2
    """pixel_shuffle: neighbours per side; tokens become factor^2 times fewer."""
    num_queries: int = 16
    """queries: tokens that come out."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "factor", "num_queries")


class Connector(nn.Module):
    """Norm, then the map of `kind`, over the patches; class token and registers are left out."""

    no_decay: ClassVar[tuple[str, ...]] = ("queries",)
    weights_meet: ClassVar[bool] = True

    def __init__(self, config: ConnectorConfig, vision: VisionConfig, *, dim: int) -> None:
        super().__init__()
        self.config, self.vision = config, vision
        width = vision.transformer.dim
        if config.kind == "pixel_shuffle" and vision.grid_size % config.factor:
            raise ValueError(
                f"connector.factor = {config.factor} must divide the {vision.grid_size} patches of "
                "a side"
            )
        self.norm = vision.transformer.build_norm(width)
        entering = width * config.factor**2 if config.kind == "pixel_shuffle" else width
        self.up = nn.Linear(entering, dim)
        self.down = nn.Linear(dim, dim) if config.kind in ("mlp", "pixel_shuffle") else None
        self.queries: nn.Parameter | None = None
        self.attention: Attention | None = None
        if config.kind == "queries":
            self.queries = nn.Parameter(torch.zeros(config.num_queries, dim))
            heads = max(n for n in range(1, 9) if dim % n == 0)
            self.attention = Attention(
                dim, num_heads=heads, num_kv_heads=heads, head_dim=dim // heads
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of an image of the native size."""
        return num_image_tokens(self.config, self.vision)

    def forward(self, image_BTD: Tensor) -> Tensor:
        """The tower's tokens [B, T, D] -> [B, P, dim]."""
        x_BPD = self.norm(image_BTD[:, self.vision.num_prefix :])
        if self.config.kind == "pixel_shuffle":
            x_BPD = shuffle_pixels(x_BPD, self.vision.grid_size, self.config.factor)
        x_BPD = self.up(x_BPD)
        if self.down is not None:
            x_BPD = self.down(F.gelu(x_BPD))
        if self.queries is not None and self.attention is not None:
            query_BMD = self.queries.expand(x_BPD.size(0), -1, -1)
            x_BPD = query_BMD + self.attention(query_BMD, x_BPD, mask=Mask())
        return x_BPD

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights: linears U(+-fan_in^-.5), queries dim^-.5 N(1), norm identity."""
        reset_norms(self.norm)
        init_linears(self, generator)
        if self.queries is not None:
            self.queries.normal_(0.0, self.queries.size(1) ** -0.5, generator=generator)


def num_image_tokens(config: ConnectorConfig, vision: VisionConfig) -> int:
    """Tokens that a connector makes of an image, or of a piece of one, of the native size."""
    if config.kind == "queries":
        return config.num_queries
    cut = config.factor**2 if config.kind == "pixel_shuffle" else 1
    return vision.num_patches // cut


class GridPlaces(nn.Module):
    """A learned vector for where a piece of an image stands: that of its row and of its column, or
    those of a piece that is the whole image."""

    no_decay: ClassVar[tuple[str, ...]] = ("rows", "columns")

    def __init__(self, tiles: TilesConfig, *, dim: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(tiles.most + 1, dim))
        self.columns = nn.Parameter(torch.zeros(tiles.most + 1, dim))

    def forward(self, place_N2: Tensor) -> Tensor:
        """Rows and columns, WHOLE for the whole image -> [N, dim]."""
        row_N, column_N = (place_N2 - WHOLE).unbind(1)
        return F.embedding(row_N, self.rows) + F.embedding(column_N, self.columns)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, N(.02) as a decoder's tokens."""
        for table in (self.rows, self.columns):
            table.normal_(0.0, 0.02, generator=generator)


def shuffle_pixels(x_BPD: Tensor, grid_size: int, factor: int) -> Tensor:
    """[B, P, D] of a square grid -> [B, P / factor^2, D * factor^2], neighbours side by side."""
    x = x_BPD.unflatten(1, (grid_size // factor, factor, grid_size // factor, factor))
    return x.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
