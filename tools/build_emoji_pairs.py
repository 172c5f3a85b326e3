"""Build the EmojiPairs data set from its sources, as it lies in mmtrain/demo.

    python tools/build_emoji_pairs.py OUT [--packages FOLDER]

Needs `npm`, which fetches the designs' packages into FOLDER, and resvg-py==0.5.0, which draws them;
neither is needed to use the data set. It takes about 15 minutes of CPU, most of it for drawing. The
same pins give the same pixels and the same splits:

    OUT/emoji/*.tar.xz                 .webp .txt .json of each pair
    OUT/emoji/classes.json             the seen and the unseen concepts
    OUT/emoji/{stats,manifest}.json    counts and one hash over all pixels; hashes of the tars
    OUT/debug/                         a few small pairs, not packed, and dialogues about them
"""

import functools
import hashlib
import io
import json
import lzma
import os
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import resvg_py
from emoji_sources import DESIGNS, Concept, Design, index_names, load_concepts
from PIL import Image

from mmtrain.cli.endings import end_well
from mmtrain.cli.parser import Parser
from mmtrain.demo.emoji_pairs import tar_bytes
from mmtrain.errors import UsageError

PIXELS_SHA256 = "0e3e8a2eee560133d2790b699501c440cb201a5a4ce2e4482f202d2f8bc2f5d2"
HELD_OUT_DESIGNS = ("twemoji", "openmoji")
SIZE = 64
PAIRS_PER_SHARD = 2048
# Plain shapes, of which four training designs each fit into one block of a tar.
DEBUG_CONCEPTS = (
    "high voltage", "heart suit", "left arrow", "right arrow", "red circle", "large blue diamond",
    "musical note", "droplet", "cross mark", "check mark", "plus", "minus", "cloud", "floppy disk",
    "white question mark", "page facing up",
)  # fmt: skip
DEBUG_DRAWINGS, DEBUG_BYTES = 4, 512


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One drawing and what it shows."""

    design: Design
    concept: Concept
    drawing: str
    webp: bytes
    pixels_sha256: str

    @property
    def key(self) -> str:
        """The name of its members in a tar."""
        return f"{self.design.name}_{self.concept.code}"

    @property
    def order(self) -> str:
        """Sorting by this mixes designs and concepts, the same way at every build."""
        return _sha256(self.design.name + self.concept.code)

    def members(self) -> list[tuple[str, bytes]]:
        """Its files in a tar."""
        about = self.concept.about() | {
            "vendor": self.design.name,
            "icon": self.drawing,
            "license": self.design.license,
            "sha256": self.pixels_sha256,
        }
        return [
            (f"{self.key}.webp", self.webp),
            (f"{self.key}.txt", self.concept.caption.encode("utf-8")),
            (f"{self.key}.json", json.dumps(about, ensure_ascii=False).encode("utf-8")),
        ]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def render(svg: str) -> tuple[bytes, str]:
    """The drawing on white as lossless WebP, and the SHA-256 of its RGB pixels."""
    png = bytes(resvg_py.svg_to_bytes(svg, width=SIZE, height=SIZE, skip_system_fonts=True))
    canvas = Image.new("RGBA", (SIZE, SIZE), "white")
    canvas.alpha_composite(Image.open(io.BytesIO(png)).convert("RGBA"))
    image = canvas.convert("RGB")
    webp = io.BytesIO()
    image.save(webp, "WEBP", lossless=True, quality=100, method=6)
    return webp.getvalue(), hashlib.sha256(image.tobytes()).hexdigest()


def draw_all(concepts: dict[str, Concept], packages: Path) -> list[Pair]:
    """Every design's drawings of every concept, design by design, duplicates among them."""
    designs = {name: Design(name, packages) for name in DESIGNS}
    index = index_names(concepts, designs, packages)
    found = [
        (design, concepts[code], drawing)
        for design in designs.values()
        for code, drawing in design.match(concepts, index)
    ]
    with Pool(os.cpu_count()) as pool:
        svgs = [design.svg(drawing, size=SIZE) for design, _, drawing in found]
        images = pool.map(render, svgs, chunksize=64)
    return [
        Pair(design=design, concept=concept, drawing=drawing, webp=webp, pixels_sha256=sha256)
        for (design, concept, drawing), (webp, sha256) in zip(found, images, strict=True)
    ]


def is_unseen(concept: Concept) -> bool:
    """One family in ten, whole; symbols stay, they would be unguessable."""
    return not concept.is_symbol and int(_sha256(concept.family), 16) % 10 == 0


def split_of(pair: Pair) -> str:
    """Which tar, or which series of tars, a pair belongs to."""
    if is_unseen(pair.concept):
        return "unseen"
    return f"val_{pair.design.name}" if pair.design.name in HELD_OUT_DESIGNS else "train"


def split_pairs(drawn: list[Pair]) -> tuple[dict[str, list[Pair]], dict[str, list[Concept]]]:
    """The pairs of each split without duplicates, and the seen and unseen concepts."""
    shown = {
        pair.concept.code: pair.concept for pair in sorted(drawn, key=lambda p: p.concept.code)
    }
    trained = {pair.concept.code for pair in drawn if split_of(pair) == "train"}
    classes = {
        "seen": [concept for code, concept in shown.items() if code in trained],
        "unseen": [concept for concept in shown.values() if is_unseen(concept)],
    }
    # Of drawings equal to the last pixel, by one designer or two, the first counts.
    first_of = {pair.pixels_sha256: pair for pair in reversed(drawn)}
    splits: dict[str, list[Pair]] = {
        "train": [],
        "val_twemoji": [],
        "val_openmoji": [],
        "unseen": [],
    }
    for pair in sorted(first_of.values(), key=lambda pair: pair.order):
        if not split_of(pair).startswith("val_") or pair.concept.code in trained:
            splits[split_of(pair)].append(pair)
    return splits, classes


def statistics(
    drawn: list[Pair], splits: dict[str, list[Pair]], classes: dict[str, list[Concept]]
) -> dict:
    """Counts by design and split, the licences, and the hash over all pixels."""
    pixels = {pair.pixels_sha256 for pair in drawn}
    by_design = {
        name: dict(
            Counter(
                split for split, pairs in splits.items() for p in pairs if p.design.name == name
            )
        )
        for name in DESIGNS
    }
    return {
        "pixels_sha256": _sha256("".join(sorted(pixels))),
        "duplicates_dropped": len(drawn) - len(pixels),
        "vendors": by_design,
        "licenses": {pair.design.name: pair.design.license for pair in drawn},
        "splits": {
            split: {
                "pairs": len(pairs),
                "concepts": len({pair.concept.code for pair in pairs}),
                "webp_bytes": sum(len(pair.webp) for pair in pairs),
            }
            for split, pairs in splits.items()
        },
        "classes": {split: len(concepts) for split, concepts in classes.items()}
        | {"unseen_families": len({concept.family for concept in classes["unseen"]})},
    }


def to_tar(pairs: Iterable[Pair]) -> bytes:
    """The pairs in their order, three members each."""
    return tar_bytes(member for pair in pairs for member in pair.members())


def tars_of(splits: dict[str, list[Pair]]) -> dict[str, bytes]:
    """Every tar by file name."""
    tars = {}
    for start in range(0, len(splits["train"]), PAIRS_PER_SHARD):
        name = f"train-{start // PAIRS_PER_SHARD:05d}.tar"
        tars[name] = to_tar(splits["train"][start : start + PAIRS_PER_SHARD])
    return tars | {f"{split}.tar": to_tar(splits[split]) for split in splits if split != "train"}


def write_json(path: Path, content: object, *, indent: int = 1) -> None:
    """UTF-8, one item a line."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    path.write_text(text + "\n", encoding="utf-8")


def write_dialogues(path: Path, shown: list[tuple[bytes, dict]]) -> None:
    """A dialogue about each drawing, a row a line with the drawing in it: what it is and of which
    group, in either order; in every fourth a second drawing is shown on the way.

    Args:
        path: the file.
        shown: drawings, and what their concepts say.
    """
    lines = []
    for number, (webp, about) in enumerate(shown):
        images = [webp]
        asked = [("what is it?", about["name"]), ("of which group is it?", about["group"])]
        if number % 2:
            asked = asked[::-1]
        if number % 4 == 3:
            other, its = shown[(number + 7) % len(shown)]
            images.append(other)
            asked.append(("<image>\nand this?", its["name"]))
        turns = [
            {"from": side, "value": text}
            for pair in asked
            for side, text in zip(("human", "gpt"), pair, strict=True)
        ]
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        urls = [f"data:image/webp;base64,{b64encode(image).decode()}" for image in images]
        row = {"conversations": turns, "image": urls}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def write_debug(folder: Path, train: list[Pair]) -> None:
    """The smallest drawings of `DEBUG_CONCEPTS`, with their classes."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen: list[Pair] = []
    for name in DEBUG_CONCEPTS:
        small = [p for p in train if p.concept.name == name and len(p.webp) <= DEBUG_BYTES]
        assert len(small) >= DEBUG_DRAWINGS, f"{name} is too large in most designs"
        chosen += small[:DEBUG_DRAWINGS]
    chosen.sort(key=lambda pair: pair.order)
    (folder / "train.tar").write_bytes(to_tar(chosen))
    shown = [(pair.webp, pair.concept.about()) for pair in chosen]
    write_dialogues(folder / "dialogues.jsonl", shown)
    concepts = {pair.concept.code: pair.concept for pair in chosen}
    classes = [{"id": c.code.upper(), "name": c.name} for _, c in sorted(concepts.items())]
    write_json(folder / "classes.json", classes, indent=0)


def build(out: Path, packages: Path) -> dict:
    """Write everything below `out`; returns the statistics."""
    drawn = draw_all(load_concepts(packages), packages)
    splits, classes = split_pairs(drawn)
    stats = statistics(drawn, splits, classes)
    if stats["pixels_sha256"] != PIXELS_SHA256:
        raise UsageError(
            f"pixels_sha256 = {stats['pixels_sha256']}: is not {PIXELS_SHA256}; "
            "install resvg-py==0.5.0"
        )
    folder = out / "emoji"
    folder.mkdir(parents=True, exist_ok=True)
    tars = tars_of(splits)
    pack = functools.partial(lzma.compress, preset=9 | lzma.PRESET_EXTREME)
    with Pool(os.cpu_count()) as pool:
        for name, packed in zip(tars, pool.map(pack, tars.values(), chunksize=1), strict=True):
            (folder / f"{name}.xz").write_bytes(packed)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in tars.items()}
    write_json(folder / "manifest.json", {"tars": hashes})
    write_json(folder / "stats.json", stats)
    about = {split: [concept.about() for concept in classes[split]] for split in classes}
    write_json(folder / "classes.json", about, indent=0)
    write_debug(out / "debug", splits["train"])
    return stats


def main() -> int:
    """The exit code: 2, after one line on stderr, for a user's mistake."""
    return end_well(run, name="build_emoji_pairs")


def run() -> None:
    """Build, and print what was built."""
    parser = Parser(prog="build_emoji_pairs", description=__doc__)
    parser.add_argument("out", type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--packages",
        type=Path,
        default=Path("npm"),
        metavar="DIR",
        help="where the npm packages are (default: npm)",
    )
    args = parser.parse_args()
    print(json.dumps(build(args.out, args.packages.absolute()), indent=1))


if __name__ == "__main__":
    sys.exit(main())
