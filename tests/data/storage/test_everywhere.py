"""The same batches from everywhere by any number of ranks, workers and lanes; every sample once."""

import itertools
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmtrain.data.batch import ImageTextBatch
from tests.data.shard_files import build_data, pairs, write_shard
from tests.data.storage.conftest import Bucket
from tests.data.storage.fault_server import dice, serving

SIZES = (17, 9, 14, 11, 23, 9)
NUM_SAMPLES, BATCH = sum(SIZES), 16
EPOCH = -(-NUM_SAMPLES // BATCH)
"""Batches of one, the last of which is padded."""
WORLDS, LANES, WORKERS = (1, 2, 4, 8), (1, 4, 8), (0, 1, 3)
TENSORS = ("images_BCHW", "tokens_BT", "text_length_B", "label_B", "position_B", "valid_B")
OPTIONS = {"batch_size": BATCH, "fixed_length": 16, "last": "mask"}


def of_rank(
    place: str,
    rank: int,
    world_size: int,
    *,
    at_three: Callable[[], None] = lambda: None,
    **options,
) -> list[ImageTextBatch]:
    """An epoch's batches of a rank, and the next one's first.

    Args:
        place: the shards.
        rank: which.
        world_size: of how many.
        at_three: what happens when it has three.
        options: of the data.
    """
    data = build_data(place, rank=rank, world_size=world_size, **OPTIONS | options)
    batches = []
    for batch in data.iterate(0, EPOCH + 1):
        batches.append(batch)
        if len(batches) == 3:
            at_three()
    return batches


def assert_part(
    part: list[ImageTextBatch], want: list[ImageTextBatch], rank: int, world_size: int
) -> None:
    """A rank has its rows of the whole batches, to the bit."""
    rows = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    for number, (batch, whole) in enumerate(zip(part, want, strict=True)):
        assert batch.keys == whole.keys[rows]
        for name in TENSORS:
            assert torch.equal(getattr(batch, name), getattr(whole, name)[rows]), (number, name)


@pytest.fixture
def places(tmp_path, monkeypatch, s3: Bucket):
    """The same shards on a disk, in a store and on a web server."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))
    (tmp_path / "set").mkdir()
    # Without WebP, for which each worker would import all of Pillow's formats.
    samples = (sample for sample in pairs(0, 2 * NUM_SAMPLES) if "webp" not in sample[1])
    for number, size in enumerate(SIZES):
        write_shard(tmp_path / "set" / f"{number:03}.tar", itertools.islice(samples, size))
    with serving(
        tmp_path / "set", fault=dice(seed=1, share=0.02, faults=("stall",)), stall=0.01
    ) as web:
        yield {
            "disk": str(tmp_path / "set"),
            "store": s3.upload(tmp_path / "set", "all"),
            "web": f"{web.url}/{{000..005}}.tar",
        }


def _read_slowly(place: str, cache: str, environment: dict[str, str]) -> None:
    """A job to kill, in our environment: what forks it may be older than the store."""
    os.environ |= environment
    for _ in build_data(place, cache_dir=cache, cache_gb=0.1, **OPTIONS).iterate(0, EPOCH):
        time.sleep(0.2)


def leave_what_a_killed_job_leaves(place: str, cache: Path) -> None:
    job = multiprocessing.get_context("forkserver").Process(
        target=_read_slowly, args=(place, str(cache), dict(os.environ))
    )
    job.start()
    while not [*cache.rglob("*-*")]:
        assert job.is_alive()
        time.sleep(0.01)
    job.kill()
    job.join()


def _remove_at_once(folder: Path) -> None:
    """Also what is being written to."""
    shutil.rmtree(folder.rename(f"{folder}-gone"), ignore_errors=True)


CACHES = ("off", "on", "full", "deleted", "killed")


@pytest.mark.slow
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(
    ("place", "cache"), [("disk", "off"), *itertools.product(("store", "web"), CACHES)]
)
def test_all_ranks_see_the_same_from_everywhere(places, place, cache, lanes, tmp_path) -> None:
    """Each world with one number of workers, which the three tests of a cache have by turns.

    Without workers all ranks of a world are read; with workers one of them, by turns, since what it
    reads is nobody else's matter.
    """
    want = of_rank(places["disk"], 0, 1, lanes=lanes)
    keys = [key for batch in want[:EPOCH] for key in batch.keys if key]
    assert (NUM_SAMPLES - len(set(keys)), len(keys) - len(set(keys))) == (0, 0)
    left = tmp_path / "left"
    if cache == "killed":
        leave_what_a_killed_job_leaves(places[place], left)
    for turn, world in enumerate(WORLDS, LANES.index(lanes)):
        workers = WORKERS[turn % 3]
        folder = tmp_path / ("same" if cache == "on" else str(world))  # cold, then warm
        options = {} if cache == "off" else {"cache_dir": str(folder), "cache_gb": 0.1}
        options |= {"cache_gb": 2e-4} if cache == "full" else {}  # 200 kB
        at_three = {"at_three": lambda folder=folder: _remove_at_once(folder)}
        options |= at_three if cache == "deleted" else {}
        if cache == "killed":
            shutil.copytree(left, folder)
        for rank in range(world) if workers == 0 else (turn % world,):
            part = of_rank(places[place], rank, world, lanes=lanes, workers=workers, **options)
            assert_part(part, want, rank, world)
