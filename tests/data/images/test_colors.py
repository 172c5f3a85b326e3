"""Random colours of training images: torchvision's for the same factors, as often as asked."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from mmtrain.data.images.colors import NUM_DRAWS, random_colors, turned_hue
from mmtrain.data.images.transforms import AugmentConfig, PreprocessConfig, TrainTransform
from mmtrain.data.order.randomness import uniform
from tests.data.shard_files import picture

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
JITTER = (0.4, 1.5, 0.7, 0.2)


@pytest.mark.parametrize("turn", [-0.5, -0.2, -0.001, 0.0, 0.003, 0.1, 0.5])
def test_hues_turn_as_torchvisions(turn):
    image = Image.fromarray(PIXELS)
    assert np.array_equal(turned_hue(image, turn), functional.adjust_hue(image, turn))


@pytest.mark.parametrize("seed", range(20))
def test_the_pixels_are_torchvisions(seed):
    u_order, *u_factors = np.random.default_rng(seed).random(5).tolist()
    ours = random_colors(
        PIXELS,
        [0.0, u_order, *u_factors, 0.9],
        jitter=JITTER,
        jitter_prob=1.0,
        gray_scale_prob=0.5,
    )
    ranges = [(max(0, 1 - width), 1 + width) for width in JITTER[:3]] + [(-JITTER[3], JITTER[3])]
    factors = [low + (high - low) * u for (low, high), u in zip(ranges, u_factors, strict=True)]
    changes = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    # The order is one of 24, counted as itertools counts them: the first drawn fastest at the end.
    left, image = [0, 1, 2, 3], Image.fromarray(PIXELS)
    index = int(u_order * 24)
    for each in (6, 2, 1, 1):
        which = left.pop(index // each)
        index %= each
        image = changes[which](image, factors[which])
    assert np.array_equal(ours, image)


def test_grey_is_torchvisions_and_comes_last():
    draws = [0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1]
    grey = random_colors(PIXELS, draws, jitter=JITTER, jitter_prob=0.5, gray_scale_prob=0.2)
    assert np.array_equal(grey, functional.to_grayscale(Image.fromarray(PIXELS), 3))
    draws[0] = 0.0
    both = random_colors(PIXELS, draws, jitter=JITTER, jitter_prob=0.5, gray_scale_prob=0.2)
    assert not np.array_equal(grey, both)
    assert np.array_equal(both[..., 0], both[..., 1])
    assert np.array_equal(both[..., 0], both[..., 2])


def test_colours_change_as_often_as_asked_and_crops_stay():
    pixels = np.asarray(picture((40, 40))).copy()
    size = PreprocessConfig(image_size=24)
    plain = TrainTransform(size, AugmentConfig(crop_scale=(0.3, 1.0), horizontal_flip=0.5))
    rows = uniform(seed=0, epoch=0, position_B=range(300), purpose="crop", num=plain.num_draws)
    crops = [plain(pixels, row) for row in rows]

    def colored(**keys) -> list[torch.Tensor]:
        augment = AugmentConfig(crop_scale=(0.3, 1.0), horizontal_flip=0.5, **keys)
        return [TrainTransform(size, augment)(pixels, row) for row in rows]

    greys = colored(gray_scale_prob=0.2)
    changed = [not torch.equal(x, y) for x, y in zip(crops, greys, strict=True)]
    assert 40 < sum(changed) < 80
    for crop, grey in zip(crops, greys, strict=True):
        # Where the colours stayed it is the crop, and else the grey of the same crop.
        image = Image.fromarray(crop.permute(1, 2, 0).numpy())
        expected = torch.from_numpy(np.array(functional.to_grayscale(image, 3))).permute(2, 0, 1)
        assert torch.equal(grey, crop) or torch.equal(grey, expected)
    jittered = colored(color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_prob=0.7)
    assert 180 < sum(not torch.equal(x, y) for x, y in zip(crops, jittered, strict=True)) < 240


def test_the_same_draws_give_the_same_colours():
    rows = uniform(seed=1, epoch=2, position_B=range(5), purpose="x", num=NUM_DRAWS).tolist()
    made = [
        random_colors(PIXELS, row, jitter=JITTER, jitter_prob=1.0, gray_scale_prob=0.0)
        for row in rows * 2
    ]
    for first, again in zip(made[:5], made[5:], strict=True):
        assert np.array_equal(first, again)
    assert not np.array_equal(made[0], made[1])
