"""From an object store to batches: an empty and a full cache against a disk and against webdataset.

The photographs of `data_pipeline.py`, 256 pixels on the shorter side, lie on a disk and on a server
on loopback, a process of its own: a web server of ranges, and moto's of S3. By turns: ours from the
disk; from the server with an empty cache on disk, with a full one; and webdataset with open_clip's
transform, which reads the same objects its own way (curl). The disk is read by eight threads, as a
store is, and by one, as it is unless `data.threads` says more: side by side on the two halves of a
core, the same work counts as more of a processor's time. Prints milliseconds an image, of the time
that passed and of this process's processors, and each way's speed relative to the disk's by as many
threads, round by round.

    python benchmarks/data_remote.py --out benchmarks/results/data_remote_cpu.md
"""

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import open_clip
import torch
from data_pipeline import BATCH, KINDS, SHARDS, SIZE, write_shards
from machine import describe_machine
from open_clip.transform import PreprocessCfg, image_transform_v2
from range_server import serve_s3, serve_web, serving
from webdataset.compat import WebDataset

from mmtrain.data.config import DataConfig
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer

KIND, THREADS = "256", 8
SERVERS = {"web": serve_web, "S3": serve_s3}
Times = dict[str, list[float]]


def open_ours(place: str, cache: Path | None, *, threads: int = THREADS) -> ImageTextData:
    """The data of shards in a folder or behind a URL."""
    return ImageTextData(
        DataConfig(
            train=f"{place}/{{00000..{SHARDS - 1:05d}}}.tar",
            cache_dir=None if cache is None else str(cache),
            cache_gb=None if cache is None else 1.0,
            threads=threads,
        ),
        preprocess=PreprocessConfig(image_size=SIZE),
        tokenizer=build_tokenizer(TokenizerConfig()),
        seed=0,
        batch_size=BATCH,
    )


def read_ours(data: ImageTextData, numbers: "itertools.count[int]") -> int:
    """The next epoch; its images."""
    first = data.batches_per_epoch * next(numbers)
    return sum(batch.num_rows for batch in data.iterate(first, first + data.batches_per_epoch))


def read_theirs(url: str) -> int:
    """An epoch by webdataset; its images."""
    transform = image_transform_v2(PreprocessCfg(size=SIZE), is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    data: Any = WebDataset(f"{url}/{{00000..{SHARDS - 1:05d}}}.tar", shardshuffle=SHARDS)
    data = data.shuffle(1000).decode("pilrgb").to_tuple("jpg", "txt")
    data = data.map_tuple(transform, lambda text: tokenizer(text)[0]).batched(BATCH, partial=False)
    return sum(len(images) for images, _ in data)


def ways(folder: Path, place: str, url: str, scratch: Path) -> dict[str, Callable[[], int]]:
    """Each reads an epoch, once prepared, and says how many images it had.

    Args:
        folder: of the shards on the disk.
        place: of those on the server, as we read them.
        url: the same for a web client.
        scratch: holds the caches.
    """
    cold = scratch / "cold"
    emptied, numbers = open_ours(place, cold), itertools.count()

    def read_cold() -> int:
        for kept in cold.iterdir():
            if kept.is_dir():
                shutil.rmtree(kept)
        return read_ours(emptied, numbers)

    return {
        "disk": partial(read_ours, open_ours(str(folder), None), itertools.count()),
        "disk, one thread": partial(
            read_ours, open_ours(str(folder), None, threads=1), itertools.count()
        ),
        "full cache": partial(read_ours, open_ours(place, scratch / "warm"), itertools.count()),
        "empty cache": read_cold,
        "webdataset": partial(read_theirs, url),
    }


def compare(kind: str, rounds: int) -> list[str]:
    """A row for each way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        folder.mkdir()
        write_shards(KIND, folder)
        with serving(SERVERS[kind], folder) as url:
            if kind == "S3":
                os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
                os.environ |= {"AWS_ACCESS_KEY_ID": "known", "AWS_SECRET_ACCESS_KEY": "secret"}
                url = f"{url}/shards"
            place = "s3://shards" if kind == "S3" else url
            passed, worked = take_turns(ways(folder, place, url, Path(name)), rounds)
    return [row(kind, way, passed, worked) for way in passed]


def take_turns(read: dict[str, Callable[[], int]], rounds: int) -> tuple[Times, Times]:
    """Milliseconds an image of each way, in each round: that passed, and of processors."""
    passed: Times = {way: [] for way in read}
    worked: Times = {way: [] for way in read}
    for turn in range(rounds + 1):
        for way in list(read)[:: 1 if turn % 2 else -1]:
            began, work = time.perf_counter(), time.process_time()
            num_images = read[way]()
            if turn:  # the first warms up
                passed[way].append((time.perf_counter() - began) / num_images * 1e3)
                worked[way].append((time.process_time() - work) / num_images * 1e3)
    return passed, worked


def row(kind: str, way: str, passed: Times, worked: Times) -> str:
    """One way's medians."""
    cells = [kind, way]
    for times in (passed, worked):
        ratios = [a / b for a, b in zip(times["disk"], times[way], strict=True)]
        cells += [
            f"{statistics.median(times[way]):.2f}",
            f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})",
        ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# From a store to batches, by a cache on disk",
        "",
        f"{describe_machine()}, open_clip {open_clip.__version__}, webdataset "
        f"{version('webdataset')}, moto {version('moto')}; {KINDS[KIND]} photographs, {KIND} "
        f"pixels on the shorter side, to {SIZE} pixels, batches of {BATCH}, no worker processes; "
        f"milliseconds an image, median of {arguments.rounds} alternating rounds; speed relative "
        "to ours from the disk. The server shares the machine; its processor time, and that of "
        "webdataset's curl, is not counted.",
        "",
        "| server | from | ms | speed | processor ms | speed by it |",
        "|---|---|---|---|---|---|",
        *(row for kind in SERVERS for row in compare(kind, arguments.rounds)),
    ]
    print("\n".join(lines), flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
