"""Draw pictures of several coloured shapes, with questions about them, as shards to train on.

    python tools/make_shapes_vqa.py --out data/shapes_vqa
    python tools/make_shapes_vqa.py --out data/shapes_confounded --correlation 0.9

Writes OUT/train, OUT/val and OUT/test, tars in the layout of `mmtrain data vqa`: two to four
circles, squares and triangles in six colours and two sizes, on a grey ground, and one question of
each question_type: count, colour, shape, size, exist, relation. Half of the yes/no questions are
true; a count is drawn before what is counted, so that small ones do not prevail.

With --correlation R, a thing of `train` and `val` has with chance R the one shape that belongs to
its colour, and else a random one; so colour tells shape, as a confounder would. In `test` shape and
colour are always independent: what a model loses from `val` to `test` is what it took from the
correlation. The same options give the same shards, byte for byte.
"""

import argparse
import io
import json
import random
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from mmtrain.cli.endings import end_well
from mmtrain.cli.parser import Parser
from mmtrain.data.questions.question import Question
from mmtrain.errors import UsageError
from mmtrain.files import writing

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
SIZES = {"small": 0.24, "large": 0.44}
"""Half the extent of a thing, as a share of its cell's side."""
_CELLS = 3
_SCALE = 4
"""Pictures are drawn so many times larger, then averaged down."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing of a picture."""

    colour: str
    shape: str
    size: str
    row: int
    """Of the 3 x 3 cells, from the top."""
    column: int
    """From the left."""

    @property
    def name(self) -> str:
        """What a question calls it."""
        return f"{self.colour} {self.shape}"


Asked = tuple[str, str]
"""A question and its answer."""


def draw_things(draw: random.Random, correlation: float) -> list[Thing]:
    """Two to four things, no two of the same colour and shape, each in a cell of its own."""
    things: list[Thing] = []
    cells = draw.sample(range(_CELLS**2), draw.randint(2, 4))
    for cell in cells:
        while True:
            colour = draw.choice(list(COLOURS))
            follows = draw.random() < correlation
            shape = BELONGS[colour] if follows else draw.choice(SHAPES)
            if all((one.colour, one.shape) != (colour, shape) for one in things):
                break
        size = draw.choice(list(SIZES))
        row, column = divmod(cell, _CELLS)
        things.append(Thing(colour=colour, shape=shape, size=size, row=row, column=column))
    return things


def paint(things: list[Thing], draw: random.Random, image_size: int) -> Image.Image:
    """The picture, image_size pixels a side."""
    side = image_size * _SCALE
    ground = draw.randint(60, 200)
    image = Image.new("RGB", (side, side), (ground,) * 3)
    pen = ImageDraw.Draw(image)
    cell = side / _CELLS
    for one in things:
        half = SIZES[one.size] * cell
        free = cell / 2 - half
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


def ask_count(things: list[Thing], draw: random.Random) -> Asked:
    """How many of a colour or a shape, or of all; the number is drawn before what is counted."""
    numbers: dict[int, list[str]] = {}
    for shape in SHAPES:
        numbers.setdefault(sum(t.shape == shape for t in things), []).append(f"{shape}s")
    for colour in COLOURS:
        numbers.setdefault(sum(t.colour == colour for t in things), []).append(f"{colour} things")
    numbers.setdefault(len(things), []).append("things")
    number = draw.choice(sorted(numbers))
    return f"how many {draw.choice(numbers[number])} are there?", str(number)


def ask_colour(things: list[Thing], draw: random.Random) -> Asked | None:
    """The colour of the only thing of its shape."""
    return _ask_alone(things, draw, by="shape", wanted="colour", text="what color is the {}?")


def ask_shape(things: list[Thing], draw: random.Random) -> Asked | None:
    """The shape of the only thing of its colour."""
    return _ask_alone(things, draw, by="colour", wanted="shape", text="what shape is the {} thing?")


def _ask_alone(
    things: list[Thing], draw: random.Random, *, by: str, wanted: str, text: str
) -> Asked | None:
    count = Counter(getattr(thing, by) for thing in things)
    alone = [thing for thing in things if count[getattr(thing, by)] == 1]
    if not alone:
        return None
    one = draw.choice(alone)
    return text.format(getattr(one, by)), getattr(one, wanted)


def ask_size(things: list[Thing], draw: random.Random) -> Asked:
    """Whether a thing is small, or large."""
    one, size = draw.choice(things), draw.choice(list(SIZES))
    return f"is the {one.name} {size}?", _yes(one.size == size)


def ask_exist(things: list[Thing], draw: random.Random) -> Asked:
    """Whether there is such a thing; one that is not has a colour and a shape that are there."""
    names = {thing.name for thing in things}
    mixed = {f"{a.colour} {b.shape}" for a in things for b in things} - names
    if draw.random() < 0.5:
        return f"is there a {draw.choice(sorted(names))}?", "yes"
    others = mixed or {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES} - names
    return f"is there a {draw.choice(sorted(others))}?", "no"


def ask_relation(things: list[Thing], draw: random.Random) -> Asked | None:
    """Whether one thing is left of, right of, above or below another."""
    truths: list[tuple[str, bool]] = []
    for a in things:
        for b in things:
            for word, far in (("left of", b.column - a.column), ("above", b.row - a.row)):
                back = {"left of": "right of", "above": "below"}[word]
                if far:
                    truths.append((f"is the {a.name} {word} the {b.name}?", far > 0))
                    truths.append((f"is the {a.name} {back} the {b.name}?", far < 0))
    if not truths:
        return None
    wanted = draw.random() < 0.5
    text, _ = draw.choice([truth for truth in truths if truth[1] == wanted])
    return text, _yes(wanted)


def _yes(true: bool) -> str:
    return "yes" if true else "no"


KINDS: dict[str, Callable[[list[Thing], random.Random], Asked | None]] = {
    "count": ask_count,
    "colour": ask_colour,
    "shape": ask_shape,
    "size": ask_size,
    "exist": ask_exist,
    "relation": ask_relation,
}


def ask_all(things: list[Thing], draw: random.Random, first_id: int) -> list[Question]:
    """One question of each kind that the picture has an answer to."""
    questions = []
    for kind, ask in KINDS.items():
        asked = ask(things, draw)
        if asked is None:
            continue
        text, answer = asked
        is_number = "number" if kind == "count" else "other"
        questions.append(
            Question(
                question_id=first_id + len(questions),
                question=text,
                answers=(answer,),
                question_type=kind,
                answer_type="yes/no" if answer in ("yes", "no") else is_number,
            )
        )
    return questions


def write_part(
    folder: Path, *, num: int, seed: str, correlation: float, image_size: int, per_shard: int
) -> Counter[tuple[str, str]]:
    """Write one part's tars -> how often each kind has each answer."""
    counted: Counter[tuple[str, str]] = Counter()
    folder.mkdir(parents=True)
    for first in range(0, num, per_shard):
        path = folder / f"{first // per_shard:05d}.tar"
        with writing(path), tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
            for number in range(first, min(first + per_shard, num)):
                # A picture depends on its number alone, not on how many come before.
                draw = random.Random(f"{seed} {number}")
                things = draw_things(draw, correlation)
                picture = io.BytesIO()
                paint(things, draw, image_size).save(picture, "PNG")
                questions = ask_all(things, draw, number * len(KINDS))
                counted.update((one.question_type, one.answers[0]) for one in questions)
                fields = {
                    "image_id": f"{number}",
                    "things": [vars(thing) for thing in things],
                    "questions": [one.to_json() for one in questions],
                }
                for suffix, data in (
                    ("png", picture.getvalue()),
                    ("json", json.dumps(fields).encode()),
                ):
                    entry = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    entry.size = len(data)
                    shard.addfile(entry, io.BytesIO(data))
    return counted


def _parser() -> Parser:
    parser = Parser(prog="make_shapes_vqa", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    for part, num in (("train", 20_000), ("val", 1_000), ("test", 2_000)):
        parser.add_argument(
            f"--{part}", type=int, default=num, metavar="N", help=f"pictures (default: {num})"
        )
    parser.add_argument(
        "--correlation", type=float, default=0.0, metavar="R",
        help="of colour and shape in train and val, 0 to 1 (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=int, default=64, metavar="PIXELS", help="of a side (default: 64)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    parser.add_argument(
        "--samples-per-shard", type=int, default=2_000, metavar="N", help="(default: 2000)"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Check, write and report."""
    for name, least in (("train", 1), ("val", 1), ("test", 1), ("samples_per_shard", 1)):
        if getattr(args, name) < least:
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(args, name)}: use {least} or more"
            )
    if not 0 <= args.correlation <= 1:
        raise UsageError(f"--correlation {args.correlation}: use 0 to 1")
    if args.image_size < 24:
        raise UsageError(f"--image-size {args.image_size}: shapes need 24 pixels or more")
    if args.out.exists() and any(args.out.iterdir()):
        raise UsageError(f"--out {args.out}: holds something already; name a new folder")
    for part in ("train", "val", "test"):
        counted = write_part(
            args.out / part,
            num=getattr(args, part),
            seed=f"{args.seed} {part}",
            correlation=0.0 if part == "test" else args.correlation,
            image_size=args.image_size,
            per_shard=args.samples_per_shard,
        )
        print(f"{args.out / part}: {getattr(args, part)} pictures, {counted.total()} questions")
        for kind in KINDS:
            answers = {answer: n for (of, answer), n in sorted(counted.items()) if of == kind}
            shares = ", ".join(f"{a} {n / sum(answers.values()):.0%}" for a, n in answers.items())
            print(f"  {kind:9} {shares}")


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 2, after one line on stderr, for a user's mistake."""
    return end_well(lambda: run(_parser().parse_args(arguments)), name="make_shapes_vqa")


if __name__ == "__main__":
    sys.exit(main())
