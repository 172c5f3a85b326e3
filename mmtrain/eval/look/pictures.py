"""The pictures of a look: images under a heat map, and many small ones on one sheet."""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from mmtrain.errors import UsageError
from mmtrain.eval.look.attention_maps import enlarge_maps

MAP_SIDE = 208
"""Pixels of the longer side of a picture with a map."""
TILE = 96
"""Pixels of the side of a small picture."""
SHEET_COLUMNS = 20

# Dark to bright, so that it reads without its colours too; serve/page.js has the same.
RAMP = (
    (16, 18, 38),
    (66, 22, 92),
    (168, 44, 96),
    (236, 104, 64),
    (252, 184, 72),
    (255, 246, 170),
)
_COVER = (0.42, 0.72)
"""How much of the picture the darkest and the brightest colour hide."""


def seen_part(image: Image.Image, region: tuple[float, float, float, float]) -> Image.Image:
    """What a model sees of an image, at most MAP_SIDE pixels wide and high.

    Args:
        image: RGB.
        region: left, top, width and height as parts of the image's own; beyond it is black.
    """
    left, top = round(region[0] * image.width), round(region[1] * image.height)
    width, height = round(region[2] * image.width), round(region[3] * image.height)
    part = image.crop((left, top, left + max(1, width), top + max(1, height)))
    # Small drawings are enlarged too: a map over 64 pixels could not be read.
    return ImageOps.contain(part, (MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC)


def refuse_undrawable(*maps: Tensor) -> None:
    """Features may be finite where what is between them is not.

    Raises:
        UsageError: a map has a number that is not finite.
    """
    if not all(bool(each.isfinite().all()) for each in maps):
        raise UsageError(
            "where the model looks cannot be drawn: the maps hold numbers that are not finite, as "
            "after a training that diverged"
        )


def draw_heat(
    picture: Image.Image, map_RC: Tensor, *, low: float, high: float | None = None
) -> bytes:
    """A picture under a map, as WebP, see `under_heat`."""
    return to_webp(under_heat(picture, map_RC, low=low, high=high))


def under_heat(
    picture: Image.Image,
    map_RC: Tensor,
    *,
    low: float,
    high: float | None = None,
    region: tuple[float, float, float, float] = (0, 0, 1, 1),
) -> Image.Image:
    """A picture under a map: dark from `low` down, bright from `high` up.

    Args:
        picture: RGB.
        map_RC: on the CPU.
        low: what is darkest.
        high: what is brightest; None: the most that the map has.
        region: left, top, width and height of what the map is of, as parts of the picture's own;
            the rest of the picture is darkest, what lies beyond it is left out.
    """
    width, height = picture.size
    left, top = round(region[0] * width), round(region[1] * height)
    wide, tall = max(1, round(region[2] * width)), max(1, round(region[3] * height))
    seen_HW = enlarge_maps(map_RC[None].float(), tall, wide)[0] - low
    most = float(map_RC.max()) if high is None else high
    seen_HW = (seen_HW / max(most - low, 1e-12)).clamp(0, 1)
    # Negative padding cuts off.
    share_HW = F.pad(seen_HW, (left, width - left - wide, top, height - top - tall))
    cover_HW1 = _COVER[0] + (_COVER[1] - _COVER[0]) * share_HW[:, :, None]
    image_HWC = torch.from_numpy(np.array(picture)).float()
    mixed_HWC = (1 - cover_HW1) * image_HWC + cover_HW1 * ramp_colours(share_HW)
    return Image.fromarray(mixed_HWC.round().clamp(0, 255).byte().numpy())


def ramp_colours(share_HW: Tensor) -> Tensor:
    """Colours between those of RAMP, [H, W, 3] in 0 to 255."""
    ramp = torch.tensor(RAMP, dtype=torch.float32)
    place_HW = share_HW.clamp(0, 1) * (len(RAMP) - 1)
    below_HW = place_HW.long().clamp(max=len(RAMP) - 2)
    return torch.lerp(ramp[below_HW], ramp[below_HW + 1], (place_HW - below_HW)[:, :, None])


def draw_sheet(images: Sequence[Image.Image]) -> bytes:
    """Images as squares of TILE pixels on white, in rows of SHEET_COLUMNS, as WebP."""
    rows = math.ceil(len(images) / SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * TILE, rows * TILE), "white")
    for number, image in enumerate(images):
        small = image.convert("RGB")
        small.thumbnail((TILE, TILE))
        row, column = divmod(number, SHEET_COLUMNS)
        left, top = ((TILE - side) // 2 for side in small.size)
        sheet.paste(small, (column * TILE + left, row * TILE + top))
    return to_webp(sheet, quality=75)


def to_webp(image: Image.Image, *, quality: int = 82) -> bytes:
    """An image as the content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()
