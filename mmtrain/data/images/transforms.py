"""Decoded images to the model's square of pixels: randomly cropped to train, Pillow-exact to judge.

Training resizes with torch (uint8, antialiased), eight times as fast as Pillow and within two
levels of it, save where bicubic overshoots black or white and the order of its two passes tells.
Published numbers depend on Pillow's own pixels, so evaluation resizes with Pillow.

Both are given RGB by all readers of data, as open_clip's and torchvision's readers give it. An
image of another mode that is handed to `EvalTransform` by itself is resized in that mode, as
open_clip's `preprocess` does it: transparent places turn black, palettes have no filter.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmtrain.data.images import colors
from mmtrain.data.images.decode import HIGHEST_MAX_IMAGE_PIXELS
from mmtrain.errors import UsageError
from mmtrain.limits import check_choices

_ATTEMPTS = 10
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


ResizeMode = Literal["shortest", "squash", "longest"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """What an image goes through before the model; travels with every exported model."""

    image_size: int
    """Height and width in pixels that the model takes."""
    resize_mode: ResizeMode = "shortest"
    """Evaluation only. shortest: shorter side to image_size, then the centre. squash: both sides,
    whatever the shape. longest: longer side, then black borders."""
    interpolation: Interpolation = "bicubic"
    """Filter of the resize, antialiased."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.image_size < 1:
            raise UsageError(f"image_size = {self.image_size} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What training changes about an image, anew in every epoch. The defaults are open_clip's."""

    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest part of the image's area that a crop keeps."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width of a crop in heights, before it is squeezed to a square."""
    horizontal_flip: float = 0.0
    """How often an image is mirrored, 0 to 1; captions may tell left from right."""
    color_jitter: colors.Jitter = (0.0, 0.0, 0.0, 0.0)
    """How far brightness, contrast, saturation (factors of up to 1 plus or minus this) and hue (up
    to 0.5 of the circle, either way) may go; open_clip's and torchvision's."""
    color_jitter_prob: float = 1.0
    """How often color_jitter is applied, above 0 to 1."""
    gray_scale_prob: float = 0.0
    """How often an image loses its colours, 0 to 1."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UsageError(f"crop_scale = {[low, high]} must rise and be within 0 and 1")
        low, high = self.crop_ratio
        if not 0 < low <= high < math.inf:
            raise UsageError(f"crop_ratio = {[low, high]} must rise and be above 0")
        often = {"horizontal_flip": self.horizontal_flip, "gray_scale_prob": self.gray_scale_prob}
        for key, prob in often.items():
            if not 0 <= prob <= 1:
                raise UsageError(f"{key} = {prob} must be within 0 and 1")
        *factors, hue = self.color_jitter
        if not all(0 <= width < math.inf for width in factors) or not 0 <= hue <= 0.5:
            raise UsageError(
                f"color_jitter = {list(self.color_jitter)} must be 0 or more, and its last, the "
                "hue, at most 0.5"
            )
        if not 0 < self.color_jitter_prob <= 1:
            raise UsageError(
                f"color_jitter_prob = {self.color_jitter_prob} must be above 0 and at most 1"
            )
        if self.color_jitter_prob < 1 and not any(self.color_jitter):
            raise UsageError(
                f"color_jitter_prob = {self.color_jitter_prob} has no effect without color_jitter; "
                "set that too, as [0.4, 0.4, 0.4, 0.1]"
            )


class TrainTransform:
    """A random crop of an image, resized, recoloured, mirrored: uint8 [H, W, 3] -> [3, S, S].

    Args:
        preprocess: the size and the filter; its resize_mode is for evaluation.
        augment: what is random.
    """

    num_draws = 4 * _ATTEMPTS + 1 + colors.NUM_DRAWS
    """Uniform draws in [0, 1) that one image takes: for the crop, the flip and the colours."""

    def __init__(self, preprocess: PreprocessConfig, augment: AugmentConfig):
        self._size, self._mode = preprocess.image_size, preprocess.interpolation
        self._augment = augment

    def __call__(self, image_HWC: np.ndarray, draws_N: Tensor) -> Tensor:
        """The crop that `draws_N` [num_draws] picks; the same draws, the same pixels."""
        draws = draws_N.tolist()
        height, width = image_HWC.shape[:2]
        top, left, h, w = crop_box(height, width, augment=self._augment, draws=draws)
        # Torch's uint8 resize is fastest where both the strides of the pixels and the one of the
        # batch of one say channels_last: the latter do if the batch comes first. A crop that is not
        # contiguous it copies first, in half again to twice the time that numpy takes.
        crop_HWC = np.ascontiguousarray(image_HWC[top : top + h, left : left + w])
        x_1CHW = torch.from_numpy(crop_HWC)[None].permute(0, 3, 1, 2)
        if (h, w) != (self._size, self._size):
            x_1CHW = F.interpolate(
                x_1CHW, size=(self._size, self._size), mode=self._mode, antialias=True
            )
        x_CHW = self._recolored(x_1CHW[0], draws[-colors.NUM_DRAWS :])
        return x_CHW.flip(-1) if draws[4 * _ATTEMPTS] < self._augment.horizontal_flip else x_CHW

    def _recolored(self, x_CHW: Tensor, draws: list[float]) -> Tensor:
        augment = self._augment
        if not (any(augment.color_jitter) or augment.gray_scale_prob):
            return x_CHW
        image_HWC = colors.random_colors(
            x_CHW.permute(1, 2, 0).numpy(),
            draws,
            jitter=augment.color_jitter,
            jitter_prob=augment.color_jitter_prob,
            gray_scale_prob=augment.gray_scale_prob,
        )
        return torch.from_numpy(image_HWC).permute(2, 0, 1)


def crop_box(
    height: int, width: int, *, augment: AugmentConfig, draws: list[float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop.

    Area and shape are drawn up to ten times until a box fits, then the largest box in the middle
    that has an allowed shape is taken: torchvision's RandomResizedCrop. Szegedy et al. 2015,
    arXiv:1409.4842, section 6.

    Args:
        height: of the image.
        width: of the image.
        augment: the ranges.
        draws: numbers in [0, 1), of which the first 40 are used.
    """
    low, high = augment.crop_scale
    narrow, wide = augment.crop_ratio
    for attempt in range(_ATTEMPTS):
        u_area, u_ratio, u_top, u_left = draws[4 * attempt : 4 * attempt + 4]
        area = height * width * (low + (high - low) * u_area)
        ratio = math.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * u_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w
    # At least 1: torchvision's own form leaves no pixel of a very long image.
    w, h = width, height
    if width / height < narrow:
        h = max(1, round(w / narrow))
    elif width / height > wide:
        w = max(1, round(h * wide))
    return (height - h) // 2, (width - w) // 2, h, w


class EvalTransform:
    """Pillow image -> uint8 [3, S, S], bit for bit what open_clip's evaluation has before it
    normalises."""

    def __init__(self, config: PreprocessConfig):
        self.config = config

    def __call__(self, image: Image.Image) -> Tensor:
        """An image of any mode and size; the resize comes before the mode's change to RGB.

        Raises:
            ValueError: the image is so elongated that its resized form would fill the memory.
        """
        size = self.config.image_size
        new_width, new_height = self._resized(image.width, image.height)
        if new_width * new_height > HIGHEST_MAX_IMAGE_PIXELS:
            raise ValueError(
                f"an image of {image.width} x {image.height} is too elongated for "
                f'resize_mode = "{self.config.resize_mode}"'
            )
        if (new_width, new_height) != image.size:
            image = image.resize((new_width, new_height), _FILTERS[self.config.interpolation])
        if image.size != (size, size):
            image = _center(image, size)
        # np.array copies: torch refuses Pillow's read-only memory.
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()

    def seen_region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, width and height of what the model sees of an image, as parts of the image's
        own width and height. Beyond 0 or 1 lie black borders."""
        size = self.config.image_size
        new_width, new_height = self._resized(width, height)
        left, top = (_first_kept(new, size) / new for new in (new_width, new_height))
        return left, top, size / new_width, size / new_height

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        size = self.config.image_size
        match self.config.resize_mode:
            case "squash":
                return size, size
            case "longest":
                # At least 1, where open_clip fails on the long image.
                ratio = max(width, height) / size
                return max(1, round(width / ratio)), max(1, round(height / ratio))
            case "shortest":
                if width <= height:
                    return size, int(size * height / width)
                return int(size * width / height), size


def _first_kept(length: int, size: int) -> int:
    """Where the middle `size` pixels of `length` begin; negative where borders are added."""
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def _center(image: Image.Image, size: int) -> Image.Image:
    """The middle square, in black where the image does not reach."""
    width, height = max(image.width, size), max(image.height, size)
    if (width, height) != image.size:
        canvas = Image.new(image.mode, (width, height), 0)
        if palette := image.getpalette():
            canvas.putpalette(palette)
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        image = canvas
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def eval_transform(config: PreprocessConfig) -> EvalTransform:
    """The preprocess of evaluation, and of whoever uses an exported model."""
    return EvalTransform(config)
