"""Random colours of training images: open_clip's `color_jitter` and `gray_scale_prob`.

Pillow changes them, as it does behind torchvision's ColorJitter: the same pixels for the same
factors.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from PIL import Image, ImageEnhance

Jitter = tuple[float, float, float, float]
"""How far brightness, contrast, saturation and hue may go, as torchvision's ColorJitter has it."""

NUM_DRAWS = 7
"""Uniform draws in [0, 1) that one image takes: whether, the order, four factors, whether grey."""
_ORDERS = tuple(permutations(range(4)))


def random_colors(
    image_HWC: np.ndarray,
    draws: Sequence[float],
    *,
    jitter: Jitter,
    jitter_prob: float,
    gray_scale_prob: float,
) -> np.ndarray:
    """An image in other colours, uint8 [H, W, 3].

    Args:
        image_HWC: uint8.
        draws: `NUM_DRAWS` numbers in [0, 1).
        jitter: brightness, contrast and saturation are multiplied by up to 1 +- theirs, but no less
            than 0; hue is turned by up to its part of the circle. In an order that is drawn too.
        jitter_prob: how often.
        gray_scale_prob: how often all colour is taken away, afterwards.
    """
    u_jitter, u_order, *u_factors, u_gray = draws
    jittered = any(jitter) and u_jitter < jitter_prob
    gray = u_gray < gray_scale_prob
    if not (jittered or gray):
        return image_HWC
    image = Image.fromarray(image_HWC)
    if jittered:
        for which in _ORDERS[int(u_order * len(_ORDERS))]:
            if jitter[which]:
                image = _changed(image, which, _factor(which, jitter[which], u_factors[which]))
    if gray:
        image = image.convert("L").convert("RGB")
    return np.array(image)


def _factor(which: int, width: float, u: float) -> float:
    """By how much to change brightness, contrast, saturation or hue (0 to 3)."""
    if which == 3:
        return width * (2 * u - 1)
    low, high = max(0.0, 1 - width), 1 + width
    return low + (high - low) * u


def _changed(image: Image.Image, which: int, factor: float) -> Image.Image:
    if which == 3:
        return turned_hue(image, factor)
    kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
    return kind(image).enhance(factor)


def turned_hue(image: Image.Image, turn: float) -> Image.Image:
    """An RGB image whose hues are turned by `turn` of the circle, -0.5 to 0.5."""
    hue, saturation, value = image.convert("HSV").split()
    # Hue is a byte and wraps around; towards zero, as torchvision's int32() cuts.
    moved = np.asarray(hue) + np.uint8(int(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(moved), saturation, value)).convert("RGB")
