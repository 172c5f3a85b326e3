"""Pictures of several coloured shapes: what is drawn where, and its painting."""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (240, 208, 40),
    "purple": (140, 60, 190),
    "orange": (240, 130, 30),
}
BELONGS = dict(zip(COLOURS, SHAPES * 2, strict=True))
"""The shape that correlates with a colour."""
SIZES = {"small": 0.27, "large": 0.47}
"""Half the extent of a thing, as a share of its cell's side."""
_SCALE = 4
"""Pictures are drawn so many times larger, then averaged down."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the pictures are like."""

    image_size: int = 32
    """Pixels of a side."""
    cells: int = 2
    """Of a side; a thing has one to itself."""
    most_things: int = 3
    """Of a picture; there are two at least."""
    spread: float = 0.3
    """How far from the middle of its cell a thing may stand, as a share of the room there is."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing of a picture."""

    colour: str
    shape: str
    size: str
    row: int
    """Of the cells, from the top."""
    column: int
    """From the left."""

    @property
    def name(self) -> str:
        """What a question calls it."""
        return f"{self.colour} {self.shape}"


def draw_things(draw: random.Random, correlation: float, look: Look) -> list[Thing]:
    """Two things or more, no two of the same colour and shape, each in a cell of its own."""
    things: list[Thing] = []
    cells = draw.sample(range(look.cells**2), draw.randint(2, look.most_things))
    for cell in cells:
        while True:
            colour = draw.choice(list(COLOURS))
            follows = draw.random() < correlation
            shape = BELONGS[colour] if follows else draw.choice(SHAPES)
            if all((one.colour, one.shape) != (colour, shape) for one in things):
                break
        size = draw.choice(list(SIZES))
        row, column = divmod(cell, look.cells)
        things.append(Thing(colour=colour, shape=shape, size=size, row=row, column=column))
    return things


def paint(things: list[Thing], draw: random.Random, look: Look) -> Image.Image:
    """The picture."""
    side = look.image_size * _SCALE
    ground = draw.randint(60, 200)
    image = Image.new("RGB", (side, side), (ground,) * 3)
    pen = ImageDraw.Draw(image)
    cell = side / look.cells
    for one in things:
        half = SIZES[one.size] * cell
        free = (cell / 2 - half) * look.spread
        x = (one.column + 0.5) * cell + draw.uniform(-free, free)
        y = (one.row + 0.5) * cell + draw.uniform(-free, free)
        fill = tuple(min(255, max(0, v + draw.randint(-12, 12))) for v in COLOURS[one.colour])
        if one.shape == "circle":
            pen.ellipse((x - half, y - half, x + half, y + half), fill=fill)
        elif one.shape == "square":
            pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)
        else:
            pen.polygon(((x, y - half), (x - half, y + half), (x + half, y + half)), fill=fill)
    return image.reduce(_SCALE)
