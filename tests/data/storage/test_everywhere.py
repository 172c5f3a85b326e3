"""The same batches from everywhere by any number of ranks, workers and lanes; every sample once."""

import pytest
import torch

from mmtrain.data.batch import ImageTextBatch
from tests.data.shard_files import build_data, write_set
from tests.data.storage.conftest import Bucket
from tests.data.storage.fault_server import serving

SIZES = (17, 9, 14, 11, 23, 6)
NUM_SAMPLES, BATCH = sum(SIZES), 16
BATCHES = 2 * (NUM_SAMPLES // BATCH)
TENSORS = ("images_BCHW", "tokens_BT", "text_length_B", "label_B", "position_B", "valid_B")


def of_ranks(place: str, world_size: int, **options) -> list[list[ImageTextBatch]]:
    """Two epochs' batches of each rank."""
    options |= {"batch_size": BATCH, "world_size": world_size, "fixed_length": 16}
    data = (build_data(place, rank=rank, **options) for rank in range(world_size))
    return [list(one.iterate(0, BATCHES)) for one in data]


def assert_global(ranks: list[list[ImageTextBatch]], want: list[ImageTextBatch]) -> None:
    for number, whole in enumerate(want):
        parts = [batches[number] for batches in ranks]
        assert sum((part.keys for part in parts), ()) == whole.keys
        for name in TENSORS:
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name)), (number, name)


@pytest.fixture
def places(tmp_path, monkeypatch, s3: Bucket):
    """The same shards on a disk, in a store and on a web server."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))
    write_set(tmp_path / "set", SIZES)
    with serving(tmp_path / "set") as web:
        yield {
            "disk": str(tmp_path / "set"),
            "store": s3.upload(tmp_path / "set", "all"),
            "web": f"{web.url}/{{000..005}}.tar",
        }


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 4, 8])
def test_all_ranks_together_see_the_same_from_everywhere(places, lanes, tmp_path) -> None:
    (want,) = of_ranks(places["disk"], 1, lanes=lanes)
    for epoch in (want[: BATCHES // 2], want[BATCHES // 2 :]):
        keys = [key for batch in epoch for key in batch.keys]
        assert len(set(keys)) == len(keys) == NUM_SAMPLES // BATCH * BATCH
    tiny, large = {"cache_gb": 2e-4}, {"cache_gb": 0.1}  # 200 kB: full at once
    for place, path in places.items():
        caches = ({}, tiny, large) if place != "disk" else ({},)
        for number, cache in enumerate(caches):
            folder = {"cache_dir": str(tmp_path / f"{place}{number}")} if cache else {}
            for world_size in (1, 2, 4, 8):
                ranks = of_ranks(path, world_size, lanes=lanes, **cache, **folder)
                assert_global(ranks, want)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing_anywhere(places, workers, lanes, tmp_path) -> None:
    (want,) = of_ranks(places["disk"], 1, lanes=lanes)
    for place, path in places.items():
        for cache in ({}, {"cache_dir": str(tmp_path / place), "cache_gb": 0.1}):
            if cache and place == "disk":
                continue
            ranks = of_ranks(path, 2, lanes=lanes, workers=workers, **cache)
            assert_global(ranks, want)


@pytest.mark.slow
def test_the_last_batch_is_the_same_from_everywhere(places) -> None:
    """Padded where data.last says so: then an epoch misses nothing."""
    options = {"last": "mask", "lanes": 4}
    (want,) = of_ranks(places["disk"], 1, **options)
    epoch = want[: -(-NUM_SAMPLES // BATCH)]
    keys = [key for batch in epoch for key in batch.keys if key]
    assert len(set(keys)) == len(keys) == NUM_SAMPLES
    for path in places.values():
        assert_global(of_ranks(path, 4, **options), want)
