"""Draw pictures of several coloured shapes, with questions about them, as shards to train on.

    python tools/make_shapes_vqa.py --out data/shapes_vqa
    python tools/make_shapes_vqa.py --out data/shapes_confounded --correlation 0.9

Writes OUT/train, OUT/val and OUT/test, tars in the layout of `mmtrain data vqa`: two or three
circles, squares and triangles in six colours and two sizes, on a grey ground, and one question of
each question_type: count, colour, shape, size, exist, relation, and four that ask openly for what
size and relation compare: extent ("is the red circle small or large?"), place ("where is the red
circle?", or "the red thing", or "the circle", where that is one), corner ("what color is the thing
at the top left?") and side ("is the red circle above or below the blue square?"). Half of the
yes/no questions are true; a count is drawn before what is counted, so that small ones do not
prevail. More and smaller things, anywhere in their cells, are harder: --cells 3 --most-things 4
--spread 1 --image-size 64.

With --correlation R, a thing of `train` and `val` has with chance R the one shape that belongs to
its colour, and else a random one; so colour tells shape, as a confounder would. In `test` shape and
colour are always independent: what a model loses from `val` to `test` is what it took from the
correlation. --wording R is a second confounder, of the kind of VQA-CP (arXiv:1712.00377): half of
the yes/no questions are then worded as statements ("there is a red circle?"), and in `train` and
`val` the wording tells with chance R the answer; in `test` it never does. The same options give the
same shards, byte for byte.
"""

import argparse
import io
import json
import random
import sys
import tarfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tools/, which is no package's

from mmtrain.cli.endings import end_well
from mmtrain.cli.parser import Parser
from mmtrain.errors import UsageError
from mmtrain.files import writing
from tools.shapes_pictures import COLOURS, Look, draw_things, paint
from tools.shapes_questions import KINDS, Part, ask_all


def write_part(
    folder: Path, *, num: int, seed: str, part: Part, look: Look, per_shard: int
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
                things = draw_things(draw, part.correlation, look)
                picture = io.BytesIO()
                paint(things, draw, look).save(picture, "PNG")
                questions = ask_all(things, draw, number * len(KINDS), part, look.cells)
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
    for part, num in (("train", 10_000), ("val", 1_000), ("test", 2_000)):
        parser.add_argument(
            f"--{part}", type=int, default=num, metavar="N", help=f"pictures (default: {num})"
        )
    parser.add_argument(
        "--correlation", type=float, default=0.0, metavar="R",
        help="of colour and shape in train and val, 0 to 1 (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size",
        type=int,
        default=Look.image_size,
        metavar="PIXELS",
        help="of a side (default: %(default)s)",
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=[*KINDS], metavar="KIND",
        help=f"of questions: {', '.join(KINDS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--wording", type=float, metavar="R",
        help="word yes/no questions in two ways, by the answer in train and val with this chance",
    )  # fmt: skip
    parser.add_argument(
        "--cells",
        type=int,
        default=Look.cells,
        metavar="N",
        help="of a side, for a thing each (default: %(default)s)",
    )
    parser.add_argument(
        "--most-things",
        type=int,
        default=Look.most_things,
        metavar="N",
        help="of a picture (default: %(default)s)",
    )
    parser.add_argument(
        "--spread", type=float, default=Look.spread, metavar="SHARE",
        help="of the room a thing has in its cell, 0 to 1; 0: the middle (default: %(default)s)",
    )  # fmt: skip
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
    for name in ("correlation", "wording", "spread"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"--{name} {value}: use 0 to 1")
    if not 2 <= args.cells <= 8:
        raise UsageError(f"--cells {args.cells}: use 2 to 8")
    # Of the 18 names all things have different ones; with a full correlation there are six.
    most = min(args.cells**2, len(COLOURS))
    if not 2 <= args.most_things <= most:
        raise UsageError(f"--most-things {args.most_things}: use 2 to {most}")
    if args.image_size < 8 * args.cells:
        raise UsageError(
            f"--image-size {args.image_size}: shapes need {8 * args.cells} pixels or more"
        )
    if args.out.exists() and any(args.out.iterdir()):
        raise UsageError(f"--out {args.out}: holds something already; name a new folder")
    look = Look(
        image_size=args.image_size,
        cells=args.cells,
        most_things=args.most_things,
        spread=args.spread,
    )
    kinds = tuple(kind for kind in KINDS if kind in args.kinds)
    told = Part(kinds=kinds, correlation=args.correlation, wording=args.wording)
    untold = Part(kinds=kinds, wording=None if args.wording is None else 0.0)
    for part in ("train", "val", "test"):
        counted = write_part(
            args.out / part,
            num=getattr(args, part),
            seed=f"{args.seed} {part}",
            part=untold if part == "test" else told,
            look=look,
            per_shard=args.samples_per_shard,
        )
        print(f"{args.out / part}: {getattr(args, part)} pictures, {counted.total()} questions")
        for kind in kinds:
            answers = {answer: n for (of, answer), n in sorted(counted.items()) if of == kind}
            shares = ", ".join(f"{a} {n / sum(answers.values()):.0%}" for a, n in answers.items())
            print(f"  {kind:9} {shares}")


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 2, after one line on stderr, for a user's mistake."""
    return end_well(lambda: run(_parser().parse_args(arguments)), name="make_shapes_vqa")


if __name__ == "__main__":
    sys.exit(main())
