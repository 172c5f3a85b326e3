"""The long versions: every place, cache, world, number of workers and lanes; 2,000 faults."""

import random
import time
from itertools import product

import pytest

from mmtrain.data.shards.source import ShardSource
from tests.data.shard_files import build_data, write_set
from tests.data.storage.fault_server import FAULTS, dice, serving
from tests.data.storage.test_remote import assert_same

NUM_BATCHES, BATCH = 12, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight shards, 65 samples: an epoch is eight batches."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    write_set(folder, (9, 8, 7, 9, 8, 7, 9, 8))
    return folder


def ranks(train, *, world, lanes, workers=0, **options):
    """The batches of every rank, joined: the keys of each global batch, and the parts."""
    parts = []
    for rank in range(world):
        data = build_data(
            train,
            batch_size=BATCH,
            shuffle_group=2,
            rank=rank,
            world_size=world,
            lanes=lanes,
            workers=workers,
            fixed_length=16,
            **options,
        )
        parts.append(list(data.iterate(0, NUM_BATCHES)))
    return [sum((part[n].keys for part in parts), ()) for n in range(NUM_BATCHES)], parts


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("lanes", [1, 4, 8])
@pytest.mark.parametrize("place", ["local", "s3", "http"])
def test_the_same_batches_everywhere(folder, s3, tmp_path, place, lanes):
    expected, _ = ranks(str(folder), world=1, lanes=lanes)
    every = [key for keys in expected[:8] for key in keys]
    assert len(every) == len(set(every)) == 64
    with serving(folder) as web:
        train = {"local": str(folder), "http": f"{web.url}/{{000..007}}.tar", "s3": ""}[place]
        if place == "s3":
            train = s3.upload(folder, "set")
        for world, cache in product((1, 2, 4, 8), (False, True)):
            options = {"cache_dir": str(tmp_path / "c")} if cache else {}
            _, local = ranks(str(folder), world=world, lanes=lanes)
            for workers in (0, 1, 3) if world in (1, 4) else (0,):
                keys, parts = ranks(train, world=world, lanes=lanes, workers=workers, **options)
                assert keys == expected, (world, cache, workers)
                for part, same in zip(parts, local, strict=True):
                    assert_same(same, part)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_thousand_requests_with_faults(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    local, rng = ShardSource(str(folder)), random.Random(0)
    expected = [local.read(sample) for sample in range(local.num_samples)]
    longest = 0.0
    with serving(folder, fault=dice(seed=4, share=0.15), stall=0.1) as web:
        source = ShardSource(f"{web.url}/{{000..007}}.tar", retry_seconds=60)
        while web.requests["GET"] < 2000:
            begin, sample = time.monotonic(), rng.randrange(local.num_samples)
            assert source.read(sample) == expected[sample]
            longest = max(longest, time.monotonic() - begin)
    assert all(web.requests[fault] > 20 for fault in FAULTS)
    assert longest < 30


@pytest.mark.slow
def test_a_server_that_stalls_for_longer_than_is_waited_is_asked_again(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with serving(folder) as web:
        source = ShardSource(f"{web.url}/000.tar", retry_seconds=30)
        faults = iter(["stall"])
        web.fault, web.stall = (lambda path, number: next(faults, "")), 20.0
        begin = time.monotonic()
        assert source.read(3) == ShardSource(str(folder / "000.tar")).read(3)
        assert 9 < time.monotonic() - begin < 19
