"""Whether memory stays as it is while a million small samples are read.

Shards of tiny images with captions of ever new words are read by the pipeline of a training for
some epochs, with the accounts that a training keeps: without worker processes, with two, and over a
web server of ranges through a cache that holds less than all shards, so that it drops pieces as it
goes. Every 50,000 samples the main process and each worker are measured: anonymous memory, which is
the process's own, and all of it, with its part of the pages that it shares. Prints both, and their
slopes once the first epoch is over, in which every shard is met and its index kept.

    python benchmarks/data_memory.py --out benchmarks/results/data_memory_cpu.md
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from machine import describe_machine, kernel_mib
from PIL import Image
from range_server import serve_web, serving

from mmtrain.data.accounts import EpochAccounts
from mmtrain.data.config import DataConfig
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer

BATCH, SIZE, EPOCHS, SHARD = 500, 24, 4, 2_500
EVERY = 50_000
"""Samples between two measurements."""
CACHE_GB = 0.5


class Seen(TypedDict):
    """One measurement, in MiB."""

    samples: int
    main: tuple[float, float]
    """Anonymous, and all."""
    workers: list[tuple[float, float]]


def write_shards(folder: Path, num_samples: int) -> None:
    """Tars of images of 16 to 32 pixels, each with a caption of words that no other has."""
    from sklearn.datasets import load_sample_images  # not in the processes that are measured

    draw = random.Random(0)
    photos = [Image.fromarray(each) for each in load_sample_images().images]
    images = [_tiny(draw.choice(photos), draw) for _ in range(2_000)]
    for first in range(0, num_samples, SHARD):
        path = folder / f"{first // SHARD:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(first, first + SHARD):
                caption = f"a photo of {number * 7919:x} by the lake of {_word(draw)}".encode()
                for extension, data in (("jpg", draw.choice(images)), ("txt", caption)):
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _tiny(photo: Image.Image, draw: random.Random) -> bytes:
    side = draw.randint(16, 32)
    left, top = draw.randint(0, photo.width - 200), draw.randint(0, photo.height - 200)
    file = io.BytesIO()
    photo.crop((left, top, left + 200, top + 200)).resize((side, side)).save(file, "JPEG")
    return file.getvalue()


def _word(draw: random.Random) -> str:
    return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(4, 12)))


def read(place: str, *, num_shards: int, workers: int, cache: str | None) -> Iterator[Seen]:
    """Read all epochs, as a training does, and measure on the way."""
    data = ImageTextData(
        DataConfig(
            train=f"{place}/{{00000..{num_shards - 1:05d}}}.tar",
            workers=workers,
            cache_dir=cache,
            cache_gb=None if cache is None else CACHE_GB,
        ),
        preprocess=PreprocessConfig(image_size=SIZE),
        tokenizer=build_tokenizer(TokenizerConfig()),
        seed=0,
        batch_size=BATCH,
    )
    accounts = EpochAccounts([""], [data.num_samples])
    num_samples, due = 0, EVERY
    for number, batch in enumerate(data.iterate(0, EPOCHS * data.batches_per_epoch), start=1):
        accounts.record(batch.taken)
        accounts.settle(data.plan, number)
        num_samples += batch.num_rows
        if num_samples >= due:
            due += EVERY
            children = sorted(each.pid or 0 for each in multiprocessing.active_children())
            yield {
                "samples": num_samples,
                "main": memory(os.getpid()),
                "workers": [memory(child) for child in children],
            }
    assert accounts.figures()["epoch_accounts"]["data"]["epochs"] == EPOCHS


def memory(process: int) -> tuple[float, float]:
    """MiB of a process: anonymous, and all with its part of shared pages."""
    file = f"/proc/{process}/smaps_rollup"
    return kernel_mib(file, "Pss_Anon"), kernel_mib(file, "Pss")


def slope(samples: list[int], mib: list[float]) -> float:
    """MiB for each 100,000 samples, once the first epoch is over."""
    warm = [number for number in samples if number > samples[-1] / EPOCHS]
    return float(np.polyfit(np.array(warm) / 1e5, mib[-len(warm) :], 1)[0])


def measure(place: str, *, num_shards: int, workers: int, cache: Path | None) -> list[Seen]:
    """What `read` sees in a process of its own."""
    words = [sys.executable, __file__, "--read", place, str(num_shards), str(workers)]
    words += [] if cache is None else [str(cache)]
    told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in told.splitlines()]


def report(way: str, seen: list[Seen]) -> Iterator[str]:
    """A row for each process of one way."""
    processes = {"main": [each["main"] for each in seen]}
    for number in range(len(seen[0]["workers"])):
        processes[f"worker {number}"] = [each["workers"][number] for each in seen]
    if len(processes) > 1:
        turns = zip(*processes.values(), strict=True)
        processes["together"] = [(sum(a for a, _ in one), sum(b for _, b in one)) for one in turns]
    samples = [each["samples"] for each in seen]
    for name, values in processes.items():
        cells = [way, name]
        for kind in (0, 1):
            mib = [value[kind] for value in values]
            warm = next(i for i, number in enumerate(samples) if number > samples[-1] / EPOCHS)
            cells += [
                *(f"{mib[at]:.1f}" for at in (0, warm, -1)),
                f"**{slope(samples, mib):+.2f}**",
            ]
        yield f"| {' | '.join(cells)} |"


def compare(num_samples: int) -> Iterator[str]:
    """The rows of every way."""
    num_shards = num_samples // EPOCHS // SHARD
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        folder.mkdir()
        write_shards(folder, num_shards * SHARD)
        for workers in (0, 2):
            seen = measure(str(folder), num_shards=num_shards, workers=workers, cache=None)
            yield from report(f"disk, {workers} workers", seen)
        with serving(serve_web, folder) as url:
            for workers in (0, 2):
                cache = Path(name) / f"cache{workers}"
                seen = measure(url, num_shards=num_shards, workers=workers, cache=cache)
                yield from report(f"cache, {workers} workers", seen)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_000_000, help="over all epochs")
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    parser.add_argument("--read", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.samples < 2 * EVERY * EPOCHS:
        parser.error(f"--samples must be at least {2 * EVERY * EPOCHS:,}, for a slope")
    torch.set_num_threads(1)
    if arguments.read:
        place, num_shards, workers, *cache = arguments.read
        for seen in read(
            place, num_shards=int(num_shards), workers=int(workers), cache=(cache or [None])[0]
        ):
            print(json.dumps(seen), flush=True)
        return
    lines = [
        f"# Memory over {arguments.samples:,} small samples",
        "",
        f"{describe_machine()}; {EPOCHS} epochs of images of 16 to 32 pixels with captions of ever "
        f"new words, shards of {SHARD:,}, batches of {BATCH}, the cache of {CACHE_GB:g} GB. MiB of "
        f"each process after {EVERY:,} samples, after the first epoch, and after all; the slopes "
        "are MiB for each 100,000 samples behind the first epoch.",
        "",
        "| from | process | own: first | an epoch | end | slope | all: first | an epoch | end | "
        "slope |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for row in compare(arguments.samples):
        lines.append(row)
        print(row, flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
