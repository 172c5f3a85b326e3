"""Tiles: which grid an image gets, that nothing of it is lost, and where each piece stands."""

import itertools

import pytest
import torch

from mmtrain.data.images.tiles import WHOLE, TilesConfig, cut, grid_of

SIZE = 16


@pytest.mark.parametrize(
    ("height", "width", "most", "grid"),
    [
        (16, 16, 4, (1, 1)),
        (10, 3, 4, (1, 1)),
        (32, 32, 4, (2, 2)),
        (64, 64, 4, (2, 2)),
        (32, 32, 3, (1, 1)),  # two tiles would show one side alone in full
        (16, 48, 4, (1, 3)),
        (160, 16, 4, (4, 1)),
        (48, 32, 6, (3, 2)),
        (17, 16, 4, (2, 1)),
        (1000, 10, 9, (9, 1)),
    ],
)
def test_grids(height: int, width: int, most: int, grid: tuple[int, int]) -> None:
    assert grid_of(height, width, TilesConfig(most=most), size=SIZE) == grid


def test_no_grid_enlarges_an_image_by_a_tile() -> None:
    """Nor has more tiles than allowed."""
    config = TilesConfig(most=5)
    for height, width in itertools.product((1, 15, 16, 17, 40, 90, 400), repeat=2):
        rows, columns = grid_of(height, width, config, size=SIZE)
        assert rows * columns <= 5
        assert (rows - 1) * SIZE < height and (columns - 1) * SIZE < width


def test_tiles_are_the_image() -> None:
    """An image of the grid's own size comes back to the bit, each tile at its place."""
    image = torch.randint(0, 256, (3 * SIZE, 2 * SIZE, 3), dtype=torch.uint8)
    pieces, places = cut(image, TilesConfig(most=6), size=SIZE)
    assert pieces.shape == (7, 3, SIZE, SIZE) and pieces.dtype == torch.uint8
    assert places.tolist() == [[r, c] for r in range(3) for c in range(2)] + [[WHOLE, WHOLE]]
    for piece, (row, column) in zip(pieces[:-1], places[:-1].tolist(), strict=True):
        at = image[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE]
        assert torch.equal(piece, at.permute(2, 0, 1))


def test_the_thumbnail_is_the_whole_image() -> None:
    image = torch.zeros(4 * SIZE, 2 * SIZE, 3, dtype=torch.uint8)
    image[: 2 * SIZE, :, 0] = 200
    config = TilesConfig(most=8)
    pieces, _ = cut(image, config, size=SIZE)
    assert (pieces[-1, 0, : SIZE // 2 - 2] > 195).all()
    assert (pieces[-1, 0, SIZE // 2 + 2 :] < 5).all()
    without, places = cut(image, TilesConfig(most=8, thumbnail=False), size=SIZE)
    assert torch.equal(without, pieces[:-1]) and (places != WHOLE).all()
    assert pieces.size(0) <= config.most_pieces


def test_a_small_image_is_one_piece() -> None:
    image = torch.full((9, SIZE, 3), 7, dtype=torch.uint8)
    pieces, places = cut(image, TilesConfig(thumbnail=True), size=SIZE)
    assert pieces.shape == (1, 3, SIZE, SIZE) and places.tolist() == [[WHOLE, WHOLE]]
    assert (pieces == 7).all()


def test_one_tile_is_no_tiles() -> None:
    with pytest.raises(ValueError, match="most = 1 cuts no image"):
        TilesConfig(most=1)
