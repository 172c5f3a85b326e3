"""What of a worker's memory is in use, and what malloc keeps, over epochs.

Photographs are read from a web server through a cache by two workers of eight threads. Where an
epoch begins each worker asks glibc (`mallinfo2`) what is given out, in heaps and by mmap, and what
is free inside the heaps; and the kernel what is dirty. If what is given out stays and what is free
grows, the process keeps holes, and nothing that it was asked to hold. `--trim` gives back what can
be (`malloc_trim`) and measures again. MALLOC_ARENA_MAX=1 in the environment is one heap for all.

    python benchmarks/data_heaps.py --epochs 40 --trim
"""

import argparse
import ctypes
import gc
import io
import json
import os
import random
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
from machine import describe_machine, kernel_mib
from PIL import Image
from range_server import serve_web, serving

from mmtrain.data.batch import ImageTextBatch
from mmtrain.data.config import DataConfig
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.data.workers import iterate_batches

BATCH, SHARDS, SHARD = 50, 6, 100
_MIB = 1 << 20


class _Mallinfo(ctypes.Structure):
    """As <malloc.h> has it."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]


class Measured:
    """Batches, with a line of JSON of the worker that makes them where an epoch begins."""

    def __init__(self, data: ImageTextData, *, out: str, trims: bool) -> None:
        self._data, self._out, self._trims = data, out, trims
        self._epoch = -1

    def batch(self, number: int) -> ImageTextBatch:
        """One of the data's."""
        epoch = number // self._data.batches_per_epoch
        if epoch != self._epoch:
            self._epoch = epoch
            self._measure()
        return self._data.batch(number)

    def _measure(self) -> None:
        gc.collect()
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _Mallinfo
        heaps = libc.mallinfo2()
        told = {
            "process": os.getpid(),
            "epoch": self._epoch,
            "given out": round((heaps.uordblks + heaps.hblkhd) / _MIB, 2),
            "free in heaps": round(heaps.fordblks / _MIB, 2),
            "blocks of Python": sys.getallocatedblocks(),
            "dirty": round(_dirty(), 2),
        }
        if self._trims:
            libc.malloc_trim(0)
            told["dirty, trimmed"] = round(_dirty(), 2)
        with Path(self._out).open("a") as file:
            file.write(json.dumps(told) + "\n")


def _dirty() -> float:
    return kernel_mib("/proc/self/smaps_rollup", "Private_Dirty")


def write_shards(folder: Path) -> None:
    """Tars of photographs of up to 640 x 427 pixels."""
    from sklearn.datasets import load_sample_images  # not in the processes that are measured

    draw = random.Random(0)
    photos = [Image.fromarray(each) for each in load_sample_images().images]
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(shard * SHARD, (shard + 1) * SHARD):
                photo = draw.choice(photos)
                width, height = draw.randint(200, 640), draw.randint(200, 427)
                left = draw.randint(0, photo.width - width)
                top = draw.randint(0, photo.height - height)
                file = io.BytesIO()
                photo.crop((left, top, left + width, top + height)).save(file, "JPEG", quality=90)
                for extension, data in (("jpg", file.getvalue()), ("txt", b"a photo")):
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--trim", action="store_true", help="give back what can be, each time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine(), f"MALLOC_ARENA_MAX={os.environ.get('MALLOC_ARENA_MAX', 'unset')}")
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/home"
        folder, out = Path(name) / "shards", f"{name}/seen"
        folder.mkdir()
        write_shards(folder)
        with serving(serve_web, folder) as url:
            data = ImageTextData(
                DataConfig(
                    train=f"{url}/{{00000..{SHARDS - 1:05d}}}.tar",
                    workers=2,
                    cache_dir=f"{name}/cache",
                    cache_gb=1.0,
                ),
                preprocess=PreprocessConfig(image_size=224),
                tokenizer=build_tokenizer(TokenizerConfig()),
                seed=0,
                batch_size=BATCH,
            )
            measured = Measured(data, out=out, trims=arguments.trim)
            stop = arguments.epochs * data.batches_per_epoch
            for _ in iterate_batches(measured, 0, stop, workers=2, prefetch=2, pin_memory=False):
                pass
        print(Path(out).read_text(), end="")


if __name__ == "__main__":
    main()
