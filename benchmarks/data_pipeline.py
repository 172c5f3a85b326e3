"""From tar shards to batches: ours against open_clip's own pipeline, alternating in one run.

Photographs (scikit-learn's two, cropped, scaled and tiled; JPEG of quality 90) are packed into
shards of three kinds: 256 and 512 pixels on the shorter side, as img2dataset makes them, and
about 1.5 megapixels, as they come from the web. Both pipelines crop at random, resize to 224 and
tokenise. `fast` is ours with `data.fast_decode`, `faster` with `data.fast_decode_keeps = 1.1` too.
Prints milliseconds of processor time an image, in one thread of one process, and the ratio round by
round.

    python benchmarks/data_pipeline.py --out benchmarks/results/data_pipeline_cpu.md
    python benchmarks/data_pipeline.py --kinds 256 --rounds 3
"""

import argparse
import io
import itertools
import json
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import open_clip_train.data
import torch
import webdataset
from machine import describe_machine
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from sklearn.datasets import load_sample_images

from mmtrain.data.config import DataConfig
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer

BATCH, SIZE, SHARDS = 64, 224, 4
KINDS = {"256": 768, "512": 512, "1.5MP": 256}
"""Images of each kind."""
CAPTIONS = (
    "a photo of a temple by a lake",
    "Dahlia in full bloom, close-up (2019) #flower",
    "Two curved roofs under a clear sky — top view | for sale $2,500",
)
Draw = random.Random


def make_image(kind: str, photos: list[Image.Image], draw: Draw) -> Image.Image:
    """One picture of a kind."""
    if kind == "1.5MP":
        width, height = draw.choice([(1280, 960), (1600, 1064), (1024, 1536), (1500, 1000)])
        image = Image.new("RGB", (width, height))
        for top, left in itertools.product(range(0, height, 300), range(0, width, 400)):
            image.paste(_crop(photos, draw, 400, 300), (left, top))
        return image
    aspect = draw.choice([3 / 4, 1, 4 / 3, 3 / 2])
    crop = _crop(photos, draw, round(400 * aspect), 400)
    scale = int(kind) / min(crop.size)
    return crop.resize((round(crop.width * scale), round(crop.height * scale)))


def _crop(photos: list[Image.Image], draw: Draw, width: int, height: int) -> Image.Image:
    photo = draw.choice(photos)
    left, top = draw.randint(0, photo.width - width), draw.randint(0, photo.height - height)
    return photo.crop((left, top, left + width, top + height))


def write_shards(kind: str, folder: Path) -> float:
    """Shards of one kind; returns the mean size of an image in kB."""
    draw, size, number = Draw(0), 0, 0
    photos = [Image.fromarray(each) for each in load_sample_images().images]
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(KINDS[kind] // SHARDS):
                file = io.BytesIO()
                make_image(kind, photos, draw).save(file, "JPEG", quality=90)
                size += file.tell()
                fields = json.dumps({"url": f"http://x/{number}"}).encode()
                caption = draw.choice(CAPTIONS).encode()
                for extension, data in (
                    ("jpg", file.getvalue()),
                    ("txt", caption),
                    ("json", fields),
                ):
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                number += 1
    return size / number / 1e3


def ours(folder: Path, **options: Any) -> Callable[[], int]:
    """Reads the next epoch; returns its images."""
    data = ImageTextData(
        DataConfig(train=f"{folder}/*.tar", **options),
        preprocess=PreprocessConfig(image_size=SIZE),
        tokenizer=build_tokenizer(TokenizerConfig()),
        seed=0,
        batch_size=BATCH,
    )
    numbers = itertools.count()

    def epoch() -> int:
        first = data.batches_per_epoch * next(numbers)
        batches = data.iterate(first, first + data.batches_per_epoch)
        return sum(batch.num_rows for batch in batches)

    return epoch


def theirs(folder: Path, num_images: int) -> Callable[[], int]:
    """The same by open_clip."""
    # Its own handler of errors fails with webdataset 1 (KeyError: fname).
    open_clip_train.data.tarfile_to_samples_nothrow = webdataset.tarfile_to_samples(
        handler=open_clip_train.data.log_and_continue
    )
    arguments = SimpleNamespace(
        train_data=f"{folder}/{{00000..{SHARDS - 1:05d}}}.tar",
        train_num_samples=num_images,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        workers=0,
        world_size=1,
        batch_size=BATCH,
    )
    transform = image_transform_v2(PreprocessCfg(size=SIZE), is_train=True)
    tokenizer, numbers = open_clip.get_tokenizer("ViT-B-32"), itertools.count()

    def epoch() -> int:
        info = open_clip_train.data.get_wds_dataset(
            arguments, transform, True, epoch=next(numbers), tokenizer=tokenizer
        )
        return sum(len(images) for images, _ in info.dataloader)

    return epoch


def compare(kind: str, rounds: int) -> list[str]:
    """The rows of one kind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mean_kb = write_shards(kind, folder)
        ways = {
            "exact": ours(folder),
            "fast": ours(folder, fast_decode=True),
            "faster": ours(folder, fast_decode=True, fast_decode_keeps=1.1),
            "open_clip": theirs(folder, KINDS[kind]),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            for way in list(ways)[:: 1 if turn % 2 else -1]:
                began = time.process_time()
                num_images = ways[way]()
                if turn:  # the first warms up, and makes the indexes
                    times[way].append((time.process_time() - began) / num_images * 1e3)
    rows: list[str] = []
    for way in ("exact", "fast", "faster"):
        ratios = [b / a for a, b in zip(times[way], times["open_clip"], strict=True)]
        rows.append(
            f"| {kind} | {mean_kb:.0f} | {way} | {statistics.median(times[way]):.2f} "
            f"| {statistics.median(times['open_clip']):.2f} | **{statistics.median(ratios):.2f}x** "
            f"({np.min(ratios):.2f} to {np.max(ratios):.2f}) |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=tuple(KINDS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# From shards to batches, ours against open_clip",
        "",
        f"{describe_machine()}, open_clip {open_clip.__version__}, webdataset "
        f"{webdataset.__version__}; images to {SIZE} pixels, batches of {BATCH}, no worker "
        f"processes, one thread; milliseconds of processor time an image, median of "
        f"{arguments.rounds} alternating rounds.",
        "",
        "| images | kB each | ours | ms | open_clip ms | open_clip / ours |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for kind in arguments.kinds:
        for row in compare(kind, arguments.rounds):
            lines.append(row)
            print(row, flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
