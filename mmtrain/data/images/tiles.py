"""An image as a grid of tiles of the model's size, and a thumbnail of the whole.

A vision tower that sees a square of few pixels reads no small print in a large picture; cut into
tiles of that size, each encoded by itself, it does (LLaVA-1.6; InternVL 1.5, arXiv:2404.16821,
section 3.2). The same cut serves training and asking.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.limits import check_counts

WHOLE = -1
"""Row and column of a piece that is no tile: the whole image."""


@dataclass(frozen=True, kw_only=True)
class TilesConfig:
    """Into how many tiles an image may be cut."""

    most: int = 4
    """Tiles of an image at most; its grid is the one that makes it smaller by least. An image
    that is no larger than a tile is one piece."""
    thumbnail: bool = True
    """The whole image as one further piece, behind its tiles."""

    def __post_init__(self) -> None:
        check_counts(self, "most", most=1024)
        if self.most < 2:
            raise ValueError("most = 1 cuts no image; leave the section out, or use 2 or more")

    @property
    def most_pieces(self) -> int:
        """Of an image."""
        return self.most + self.thumbnail


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The pieces of several images, one after another."""

    images_NCHW: Tensor
    """uint8."""
    place_N2: Tensor
    """int64, row and column of each in its image's grid."""
    counts: tuple[int, ...]
    """Of each image."""

    @staticmethod
    def whole(images_BCHW: Tensor) -> "Pieces":
        """Of images that are one piece each."""
        num = images_BCHW.size(0)
        place_N2 = torch.full((num, 2), WHOLE, device=images_BCHW.device)
        return Pieces(images_NCHW=images_BCHW, place_N2=place_N2, counts=(1,) * num)

    @staticmethod
    def joined(cuts: Sequence[tuple[Tensor, Tensor]]) -> "Pieces":
        """Of images as `cut` gives them."""
        images, places = zip(*cuts, strict=True)
        counts = tuple(len(places_P2) for places_P2 in places)
        return Pieces(images_NCHW=torch.cat(images), place_N2=torch.cat(places), counts=counts)


def grid_of(height: int, width: int, config: TilesConfig, *, size: int) -> tuple[int, int]:
    """Rows and columns of tiles that an image is cut into; (1, 1): it stays whole.

    Of the grids that do not enlarge it (no more rows than ceil(height / size), columns alike), the
    one that makes its more reduced side smaller by least, then the one that changes its shape
    least, then the one of fewest tiles.

    Args:
        height: of the image, in pixels.
        width: of the image.
        config: how many tiles there may be.
        size: of a tile's side.
    """

    def worth(grid: tuple[int, int]) -> tuple[float, float, int]:
        rows, columns = grid
        scale = min(1.0, rows * size / height, columns * size / width)
        bent = abs(math.log((columns / rows) / (width / height)))
        return round(scale, 9), -round(bent, 9), -rows * columns

    most_rows, most_columns = (min(config.most, -(-side // size)) for side in (height, width))
    grids = (
        (rows, columns)
        for rows in range(1, most_rows + 1)
        for columns in range(1, min(most_columns, config.most // rows) + 1)
    )
    return max(grids, key=worth)


def cut(
    image_HWC: Tensor, config: TilesConfig, *, size: int, interpolation: str = "bicubic"
) -> tuple[Tensor, Tensor]:
    """The pieces of an image, and where each stands.

    The image is resized to the grid, its shape with it, so that nothing of it is cut off. A piece
    of native aspect would be another form of this function's result: more pieces of one size, each
    with its place.

    Args:
        image_HWC: uint8, of any size.
        config: how many tiles there may be.
        size: of a piece's side, in pixels.
        interpolation: filter of the resize, bicubic or bilinear, antialiased.

    Returns:
        uint8 [P, 3, size, size], tiles row by row, then the thumbnail; int64 [P, 2], row and column
        of each, WHOLE twice for the whole image.
    """
    x_1CHW = image_HWC[None].permute(0, 3, 1, 2)
    height, width = image_HWC.shape[:2]
    rows, columns = grid_of(height, width, config, size=size)
    whole_1CHW = _resized(x_1CHW, size, size, interpolation)
    place_12 = torch.tensor([[WHOLE, WHOLE]])
    if rows * columns == 1:
        return whole_1CHW, place_12
    grid_CHW = _resized(x_1CHW, rows * size, columns * size, interpolation)[0]
    tiles = grid_CHW.unflatten(1, (rows, size)).unflatten(3, (columns, size))
    pieces = tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)
    place_P2 = torch.ones(rows, columns).nonzero()
    if not config.thumbnail:
        return pieces.contiguous(), place_P2
    return torch.cat([pieces, whole_1CHW]), torch.cat([place_P2, place_12])


def _resized(x_1CHW: Tensor, height: int, width: int, mode: str) -> Tensor:
    if x_1CHW.shape[2:] == (height, width):
        return x_1CHW
    return F.interpolate(x_1CHW, size=(height, width), mode=mode, antialias=True)
