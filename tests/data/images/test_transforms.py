"""Crops as torchvision draws them, resized as by Pillow; evaluation as open_clip has it."""

import io
import math
import types

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import transforms

from mmtrain.data.images.decode import decode_image, open_image
from mmtrain.data.images.transforms import (
    AugmentConfig,
    EvalTransform,
    PreprocessConfig,
    TrainTransform,
    crop_box,
)
from mmtrain.data.order.randomness import uniform
from mmtrain.errors import UsageError
from tests.data.shard_files import encoded, picture

SIZES = [
    (64, 48),
    (48, 64),
    (33, 100),
    (100, 33),
    (224, 224),
    (640, 427),
    (20, 15),
    (1, 90),
    (90, 1),
]


class Drawn:
    """Stands for torch inside torchvision's crop: each attempt gets the draws that ours has."""

    def __init__(self, draws: list[float]):
        self.attempt, self.draws = -1, draws
        self.log, self.exp, self.tensor = torch.log, torch.exp, torch.tensor

    def empty(self, _):
        return types.SimpleNamespace(uniform_=self.uniform)

    def uniform(self, low, high):
        # The area comes first and is never below 0, the logarithm of the smallest ratio always.
        self.attempt += not isinstance(low, torch.Tensor)
        u = self.draws[4 * self.attempt + isinstance(low, torch.Tensor)]
        return torch.as_tensor(low + (high - low) * u)

    def randint(self, low, high, size):
        self.place = 3 - getattr(self, "place", 3) + 2  # top, then left
        return torch.tensor([int(low + self.draws[4 * self.attempt + self.place] * (high - low))])


@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.08, 1.0), (1.0, 1.0)])
def test_crops_are_torchvisions(monkeypatch, scale):
    augment = AugmentConfig(crop_scale=scale)
    draws = uniform(seed=0, epoch=0, position_B=range(60), purpose="crop", num=40).tolist()
    sizes = [size for size in SIZES if 1 not in size]  # there torchvision's box is empty
    fallbacks = 0
    for width, height in sizes:
        image = torch.empty(3, height, width)
        for row in draws:
            drawn = Drawn(row)
            monkeypatch.setattr(transforms, "torch", drawn)
            expected = transforms.RandomResizedCrop.get_params(
                image, list(scale), list(augment.crop_ratio)
            )
            fallbacks += drawn.attempt == 9
            assert crop_box(height, width, augment=augment, draws=row) == expected
    assert fallbacks > 50 or scale[0] < 0.9  # large crops of long images never fit


def test_crops_stay_inside_and_keep_their_area():
    augment = AugmentConfig(crop_scale=(0.3, 0.6))
    for width, height in SIZES:
        for row in uniform(seed=1, epoch=0, position_B=range(200), purpose="c", num=40).tolist():
            top, left, h, w = crop_box(height, width, augment=augment, draws=row)
            assert 0 <= top <= height - h
            assert 0 <= left <= width - w
            assert min(h, w) >= 1
            if min(width, height) > 30 and max(width, height) / min(width, height) < 2:
                assert 0.25 < h * w / (height * width) < 0.65


def fixed_draws(flip: float = 0.99) -> torch.Tensor:
    return torch.tensor([0.5] * 40 + [flip], dtype=torch.float64)


WHOLE = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(0.01, 100.0))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 48), (300, 200), (640, 427), (37, 90), (20, 15)])
def test_training_resize_is_within_two_levels_of_pillows(size, mode):
    image = picture(size, seed=3)
    noisy = np.random.default_rng(0).integers(64, 192, (size[1], size[0], 3), dtype=np.uint8)
    transform = TrainTransform(PreprocessConfig(image_size=56, interpolation=mode), WHOLE)
    draws = fixed_draws()
    draws[1] = math.log(size[0] / size[1] / 0.01) / math.log(100 / 0.01)  # the image's own shape
    filter_ = getattr(Image.Resampling, mode.upper())
    for pixels in (np.asarray(image).copy(), noisy):
        ours = transform(pixels, draws)
        assert ours.shape == (3, 56, 56)
        expected = np.asarray(Image.fromarray(pixels).resize((56, 56), filter_)).transpose(2, 0, 1)
        difference = np.abs(ours.numpy().astype(int) - expected)
        assert difference.max() <= 2
        assert difference.mean() < 0.5


def test_the_same_draws_give_the_same_crop():
    pixels = np.asarray(picture((90, 60))).copy()
    transform = TrainTransform(
        PreprocessConfig(image_size=32), AugmentConfig(crop_scale=(0.2, 0.5), horizontal_flip=0.5)
    )
    rows = uniform(seed=0, epoch=0, position_B=range(4), purpose="crop", num=transform.num_draws)
    crops = [transform(pixels, row) for row in rows]
    assert all(torch.equal(transform(pixels, row), x) for row, x in zip(rows, crops, strict=True))
    assert not torch.equal(crops[0], crops[1])


def test_flips_happen_as_often_as_asked():
    pixels = np.asarray(picture((32, 32))).copy()
    flipping = TrainTransform(PreprocessConfig(image_size=32), AugmentConfig(horizontal_flip=0.3))
    rows = uniform(seed=0, epoch=0, position_B=range(300), purpose="crop", num=flipping.num_draws)
    never = TrainTransform(PreprocessConfig(image_size=32), AugmentConfig())
    flipped = [torch.equal(flipping(pixels, row), never(pixels, row).flip(-1)) for row in rows]
    assert 60 < sum(flipped) < 120
    assert not any(torch.equal(never(pixels, row), never(pixels, row).flip(-1)) for row in rows[:9])


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_is_open_clips_bit_for_bit(resize_mode, interpolation):
    config = PreprocessConfig(image_size=48, resize_mode=resize_mode, interpolation=interpolation)
    theirs = image_transform(
        48,
        is_train=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize_mode=resize_mode,
        interpolation=interpolation,
    )
    ours = EvalTransform(config)
    for mode in ("RGB", "L", "P", "CMYK", "1"):
        for size in [*SIZES[:7], (48, 48), (47, 51), (35, 48), (51, 35)]:
            image = picture(size, mode=mode, seed=sum(size))
            expected = (theirs(image) * 255).round().to(torch.uint8)
            assert torch.equal(ours(image), expected), (mode, size)


def odd_files() -> dict[str, bytes]:
    """A smooth drawing on a ground that other orders of resize, RGB and turning see otherwise."""
    ramp = np.linspace(60, 250, 64).astype(np.uint8)
    colors = np.full((64, 64, 4), 255, np.uint8)
    colors[..., 0], colors[..., 1], colors[..., 2] = ramp, ramp[:, None], 90
    colors[:, :20] = (255, 255, 255, 0)
    clear = Image.fromarray(colors)
    half = clear.copy()
    half.putalpha(128)
    solid, grey = clear.convert("RGB"), np.tile(ramp, (64, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    cmyk = solid.convert("CMYK")
    return {
        "transparent PNG": encoded(clear, "PNG"),
        "transparent WebP": encoded(clear, "WEBP", lossless=True, exact=True),
        "half transparent": encoded(half, "PNG"),
        "grey and alpha": encoded(clear.convert("LA"), "PNG"),
        "palette": encoded(solid.quantize(200), "PNG"),
        "transparent palette": encoded(solid.quantize(200), "PNG", transparency=3),
        "GIF": encoded(solid, "GIF"),
        "animation": encoded(solid, "GIF", save_all=True, append_images=[cmyk.convert("RGB")] * 2),
        "one bit": encoded(Image.fromarray(grey > 128), "PNG"),
        "16 bits": encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        "floats": encoded(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
        "CMYK, Adobe's": encoded(cmyk, "JPEG", quality=95),
        "CMYK TIFF": encoded(cmyk, "TIFF"),
        "turned": encoded(solid, "JPEG", quality=95, exif=exif),
    }


@pytest.mark.parametrize("size", [64, 56, 24])
@pytest.mark.parametrize("name", odd_files())
def test_training_and_evaluation_see_the_same_of_odd_images(name: str, size: int):
    """What readers give is RGB before it is resized: a transparent ground was white in training,
    black in evaluation. An image that is handed on in its own mode is what open_clip makes of it.
    """
    data = odd_files()[name]
    config = PreprocessConfig(image_size=size)
    whole = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    trained = TrainTransform(config, whole)(decode_image(data), fixed_draws())
    judged = EvalTransform(config)(open_image(data))
    difference = (trained.int() - judged.int()).abs()
    assert difference.max() <= (60 if name == "one bit" else 3)  # bicubic's two orders of passes
    theirs = image_transform(size, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    with Image.open(io.BytesIO(data)) as handed:
        expected = (theirs(handed) * 255).round().to(torch.uint8)
        assert torch.equal(EvalTransform(config)(handed), expected)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
def test_very_long_images(resize_mode):
    transform = EvalTransform(PreprocessConfig(image_size=48, resize_mode=resize_mode))
    for size in ((3000, 1), (1, 3000)):
        assert transform(Image.new("RGB", size, "red")).shape == (3, 48, 48)
    if resize_mode == "shortest":
        with pytest.raises(ValueError, match="an image of 100000 x 1 is too elongated"):
            transform(Image.new("RGB", (100_000, 1)))


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(160, 96), (96, 161), (48, 48), (31, 20)])
def test_the_region_seen_is_what_is_left_of_the_image(resize_mode, size):
    """Red and green grow with the place, so the pixels tell where they come from."""
    width, height = size
    transform = EvalTransform(PreprocessConfig(image_size=48, resize_mode=resize_mode))
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[:, :, 0] = (np.arange(width) + 0.5) / width * 200
    ramp[:, :, 1] = ((np.arange(height) + 0.5) / height * 200)[:, None]
    ramp[:, :, 2] = 255
    pixels = transform(Image.fromarray(ramp)).float()
    left, top, part_wide, part_high = transform.seen_region(width, height)
    place = (torch.arange(48) + 0.5) / 48
    x, y = left + part_wide * place, top + part_high * place
    inside = ((x > 0) & (x < 1))[None, :] & ((y > 0) & (y < 1))[:, None]
    assert torch.equal(pixels[2] > 128, inside)
    assert ((pixels[0] - 200 * x[None, :])[inside].abs() < 8).all()
    assert ((pixels[1] - 200 * y[:, None])[inside].abs() < 8).all()


def test_the_image_given_is_left_alone():
    image = picture((64, 48))
    before = image.tobytes()
    pixels = EvalTransform(PreprocessConfig(image_size=48))(image)
    pixels.zero_()
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PreprocessConfig(image_size=0), "image_size = 0 must be at least 1"),
        (lambda: AugmentConfig(crop_scale=(0.0, 1.0)), "crop_scale = "),
        (lambda: AugmentConfig(crop_scale=(0.9, 0.5)), "crop_scale = "),
        (lambda: AugmentConfig(crop_scale=(0.5, 1.5)), "crop_scale = "),
        (lambda: AugmentConfig(crop_ratio=(0.0, 1.0)), "crop_ratio = "),
        (lambda: AugmentConfig(crop_ratio=(2.0, 1.0)), "crop_ratio = "),
        (
            lambda: AugmentConfig(horizontal_flip=1.1),
            "horizontal_flip = 1.1 must be within 0 and 1",
        ),
        (
            lambda: AugmentConfig(gray_scale_prob=-0.1),
            "gray_scale_prob = -0.1 must be within 0 and 1",
        ),
        (lambda: AugmentConfig(color_jitter=(0.4, 0.4, -0.4, 0.1)), "color_jitter = .* 0 or more"),
        (lambda: AugmentConfig(color_jitter=(0.4, 0.4, 0.4, 0.6)), "the hue, at most 0.5"),
        (lambda: AugmentConfig(color_jitter=(math.nan, 0, 0, 0)), "color_jitter = .* 0 or more"),
        (
            lambda: AugmentConfig(color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_prob=0.0),
            "color_jitter_prob = 0.0 must be above 0",
        ),
        (lambda: AugmentConfig(color_jitter_prob=0.8), "no effect without color_jitter"),
    ],
)
def test_values_that_cannot_be(make, message):
    with pytest.raises(UsageError, match=message):
        make()
