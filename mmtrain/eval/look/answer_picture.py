"""A picture of an answer: the image, beside it where the model looked, question and answer above,
what the colours mean below."""

import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from mmtrain.eval.look.pictures import ramp_colours, refuse_undrawable, under_heat

_SIDE = 416
"""Pixels of the longer side of either picture; small drawings are enlarged."""
_GAP = 24
_PAPER, _INK, _SOFT = (255, 255, 255), (28, 29, 31), (98, 102, 109)
_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf")
"""For letters that Pillow's own font has not."""


def answer_picture(
    picture: Image.Image,
    grid: Tensor,
    *,
    region: tuple[float, float, float, float],
    question: str,
    answer: str,
    probability: float,
) -> Image.Image:
    """RGB, whatever the size of the picture.

    Args:
        picture: what was asked about.
        grid: where the model looked, [rows, columns].
        region: left, top, width and height of what it saw, as parts of the picture's own.
        question: as it was asked.
        answer: the likeliest, or what was written.
        probability: of the answer.

    Raises:
        UsageError: where it looked is not finite.
    """
    refuse_undrawable(grid)
    shown = ImageOps.contain(picture.convert("RGB"), (_SIDE, _SIDE), Image.Resampling.BICUBIC)
    heat = under_heat(shown, grid.cpu(), low=0.0, region=region)
    width = 3 * _GAP + 2 * _SIDE
    asked = _Text(question, size=20, colour=_SOFT, width=width - 2 * _GAP)
    said = _Text(f"{answer}  ({probability:.1%})", size=26, colour=_INK, width=width - 2 * _GAP)
    rows, columns = grid.shape
    scale = f"up to {float(grid.max()):.1%} in one of {rows} x {columns} parts"
    told = _Text(scale, size=15, colour=_SOFT, width=_SIDE - 140)
    top = _GAP + asked.height + 6 + said.height + 16
    height = top + shown.height + 14 + told.height + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    asked.draw(sheet, _GAP, _GAP)
    said.draw(sheet, _GAP, _GAP + asked.height + 6)
    right = 2 * _GAP + _SIDE
    for left, panel in ((_GAP, shown), (right, heat)):
        sheet.paste(panel, (left + (_SIDE - panel.width) // 2, top))
    below = top + shown.height + 14
    _Text("the image", size=15, colour=_SOFT, width=_SIDE).draw(sheet, _GAP, below)
    _Text("0 %", size=15, colour=_SOFT, width=40).draw(sheet, right, below)
    sheet.paste(_ramp(80, 10), (right + 40, below + 5))
    told.draw(sheet, right + 132, below)
    return sheet


class _Text:
    """A text in lines of at most `width` pixels."""

    def __init__(self, text: str, *, size: int, colour: tuple[int, int, int], width: int) -> None:
        self._font, self._colour = _font(text, size), colour
        letters = max(8, int(width / max(1.0, self._font.getlength("n"))))
        self._lines = textwrap.wrap(text, letters)[:6] or [""]
        self._line = round(1.35 * size)

    @property
    def height(self) -> int:
        """Pixels of all lines."""
        return self._line * len(self._lines)

    def draw(self, sheet: Image.Image, left: int, top: int) -> None:
        """Write it."""
        pen = ImageDraw.Draw(sheet)
        for number, line in enumerate(self._lines):
            pen.text((left, top + number * self._line), line, self._colour, font=self._font)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not text.isascii():
        for name in _FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:  # not on this machine
                continue
    return ImageFont.load_default(size)


def _ramp(width: int, height: int) -> Image.Image:
    share_HW = torch.linspace(0, 1, width).expand(height, width)
    return Image.fromarray(np.asarray(ramp_colours(share_HW).round().byte()))
