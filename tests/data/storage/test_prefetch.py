"""The cache filled ahead, in the plan's order: the same batches, each byte fetched once."""

import itertools
import multiprocessing
import os
import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from mmtrain.data.loader import open_loader
from mmtrain.data.order.plan import EpochPlan
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.prefetch import Prefetch
from tests.data.shard_files import build_data, write_set
from tests.data.storage.fault_server import dice, serving
from tests.data.storage.test_remote import assert_same

SIZES = (9, 8, 7, 9, 8, 7, 9, 8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "set"
    write_set(folder, SIZES)
    return folder


@pytest.fixture(scope="module")
def local(folder):
    return list(build_data(str(folder), shuffle_group=2).iterate(0, 32))


def index(web, **options):
    """Before there is a cache, which it would fill."""
    build_data(f"{web.url}/{{000..007}}.tar", **options)


def remote(web, cache, **options):
    options = {"shuffle_group": 2, "caption_lines": False, "cache_gb": 1.0} | options
    return build_data(f"{web.url}/{{000..007}}.tar", cache_dir=str(cache), **options)


def set_bytes(folder) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def kept(cache) -> set[str]:
    return {path.parent.name for path in cache.rglob("*-*") if path.suffix != ".partial"}


def wait_for(condition, seconds=10.0) -> bool:
    end = time.monotonic() + seconds
    while not (is_true := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return is_true


def test_while_a_batch_is_used_the_next_shards_come(folder, tmp_path):
    cache = tmp_path / "c"
    with serving(folder) as web:
        index(web)
        batches = remote(web, cache).iterate(0, 16)
        web.requests.clear()
        next(batches)
        # All eight: the run reads them all, and there is room.
        assert wait_for(lambda: len(kept(cache)) == 8)
        assert web.requests["bytes"] == set_bytes(folder)
        list(batches)
        assert web.requests["bytes"] == set_bytes(folder)


def test_where_nothing_is_missing_the_next_look_waits(folder, tmp_path):
    """In proportion to what the look took: else a large cache is walked through for each batch."""
    looks = []

    def coming():
        looks.append(time.thread_time())
        while time.thread_time() - looks[-1] < 0.01:
            pass
        return ()

    ahead = Prefetch(Cache(str(tmp_path / "c"), max_bytes=10**7))
    ahead.want(coming)
    assert wait_for(lambda: ahead._rests_until > time.monotonic() + 1)
    for _ in range(50):
        ahead.want(coming)
        time.sleep(0.002)
    assert len(looks) == 1
    ahead._rests_until = 0.0
    ahead.want(coming)
    assert wait_for(lambda: len(looks) == 2)


@pytest.mark.parametrize("steps", [1, 4])
def test_nothing_is_fetched_that_the_run_does_not_read(folder, tmp_path, steps):
    cache = tmp_path / "c"
    with serving(folder) as web:
        index(web)
        data = remote(web, cache, shuffle_group=1)
        shards = {
            data.source.place(int(sample))
            for number in range(steps)
            for sample in data.plan.rows(number).sample_B
        }
        for _ in data.iterate(0, steps):
            time.sleep(0.3)
        assert len(kept(cache)) == len(shards) < 8


def test_no_more_is_fetched_ahead_than_is_kept(folder, local, tmp_path):
    cache, gb = tmp_path / "c", 0.0005
    with serving(folder) as web:
        index(web)
        batches = remote(web, cache, cache_gb=gb).iterate(0, 8)
        web.requests.clear()
        first = next(batches)
        time.sleep(1.0)
        read = web.requests["bytes"]
        assert 0 < read <= 0.5 * gb * 1e9 + 2 * 65536 * 8
        assert_same(local[:8], [first, *batches])


def _rank(url, cache, rank, world, options):
    os.environ["LOCAL_WORLD_SIZE"] = str(world)

    web = SimpleNamespace(url=url)
    data = remote(web, cache, rank=rank, world_size=world, batch_size=8, **options)
    for _ in data.iterate(0, 8):
        time.sleep(0.02)


def _fetched_by_ranks(folder, cache, start, *, world, **options) -> int:
    """Bytes, besides what each rank compares of a shard with its index."""
    slow = dice(seed=1, share=1.0, faults=("stall",))
    options["index_dir"] = str(cache.with_name("index"))
    with serving(folder, fault=slow, stall=0.02) as web:
        index(web, index_dir=options["index_dir"])
        web.requests.clear()
        ranks = [
            start(target=_rank, args=(web.url, cache, rank, world, options))
            for rank in range(world)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        return web.requests["bytes"] - world * 8 * 3 * 4096


@pytest.mark.parametrize(("world", "lanes"), [(2, 1), (4, 4), (8, 2)])
def test_ranks_of_a_machine_fetch_each_byte_once(folder, tmp_path, monkeypatch, world, lanes):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
    cache = tmp_path / "c"
    fetched = _fetched_by_ranks(folder, cache, threading.Thread, world=world, lanes=lanes)
    assert fetched <= set_bytes(folder)
    assert not list(cache.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(("world", "lanes", "workers"), [(2, 1, 2), (4, 4, 0)])
def test_processes_and_workers_of_a_machine_do_too(folder, tmp_path, world, lanes, workers):
    start = multiprocessing.get_context("spawn").Process
    options = {"world": world, "lanes": lanes, "workers": workers}
    assert _fetched_by_ranks(folder, tmp_path / "c", start, **options) <= set_bytes(folder)
    assert len(kept(tmp_path / "c")) == 8


def test_a_rank_fetches_its_own_lanes_alone(folder, tmp_path):
    cache = tmp_path / "c"
    with serving(folder) as web:
        index(web)
        data = remote(web, cache, lanes=4, shuffle_group=1, rank=1, world_size=4, batch_size=8)
        batches = data.iterate(0, 8)
        next(batches)
        time.sleep(1.0)
        fetched = len(kept(cache))
        list(batches)
        assert fetched == len(kept(cache)) <= 4


FAULTS = {
    "off": lambda monkeypatch: monkeypatch.setattr(Prefetch, "want", lambda *_: None),
    "failing": lambda monkeypatch: monkeypatch.setattr(Cache, "fetch", _fail),
    "nothing can be kept": lambda monkeypatch: monkeypatch.setattr(os, "pwrite", _fail),
}


def _fail(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fault", FAULTS)
def test_batches_are_equal_whatever_becomes_of_it(folder, local, tmp_path, monkeypatch, fault):
    with serving(folder) as web:
        index(web)
        data = remote(web, tmp_path / "c")
        FAULTS[fault](monkeypatch)
        assert_same(local, list(data.iterate(0, 32)))


def test_what_cannot_be_kept_is_not_fetched_ahead_again_and_again(folder, tmp_path, monkeypatch):
    with serving(folder) as web:
        index(web)
        data = remote(web, tmp_path / "c")
        monkeypatch.setattr(os, "pwrite", _fail)
        kept = []
        fetch = Cache.fetch
        monkeypatch.setattr(Cache, "fetch", lambda *a: kept.append(fetch(*a)) or kept[-1])
        for _ in data.iterate(0, 16):
            time.sleep(0.02)
        # One of each thread; what a batch is bringing itself is passed over.
        assert kept.count(False) <= 2


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("group", [1, 2])
def test_shards_ahead_are_those_that_the_lanes_read_until_the_end(lanes, group):
    sizes = [3, 5, 2, 4, 6, 1, 7]
    plan = EpochPlan(sizes, seed=1, shuffle_group=group, lanes=lanes)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    for epoch, lane in itertools.product((0, 4), range(lanes)):
        low, high = plan.lane_bounds(epoch)[lane : lane + 2].tolist()
        for first, stop in itertools.combinations(range(low, high + 1), 2):
            place_B, ends = np.array([first]), {lane: (epoch, stop - 1)}
            told = plan.shards_ahead(epoch, place_B, last=ends).tolist()
            read = [shard_of[plan.sample(epoch, place)] for place in range(first, stop)]
            assert {*read} <= {*told} and len(told) == len({*told})
            if group == 1:
                assert [*dict.fromkeys(read)] == told
        both = plan.shards_ahead(epoch, np.array([low])).tolist()
        coming = plan.lane_bounds(epoch + 1)[lane : lane + 2].tolist()
        read = {shard_of[plan.sample(epoch, place)] for place in range(low, high)}
        assert {*both[: len(read)]} == read
        assert {*both} == read | {shard_of[plan.sample(epoch + 1, p)] for p in range(*coming)}


RANGES = {"rank": 1, "world_size": 4, "batch_size": 8}
"""Of four machines: each keeps the ranges that it reads."""


def by_ranges(web, cache, **options):
    index(web)
    data = remote(web, cache, **RANGES | options)
    assert not data._cache.whole
    web.requests.clear()
    web.log.clear()
    return data


def asked(web) -> Counter[tuple[str, str]]:
    """How often each range of each shard was."""
    return Counter((name, told) for name, told, _ in web.log)


def used(batches) -> list[object]:
    """Each for some time, in which others come."""
    made = []
    for batch in batches:
        made.append(batch)
        time.sleep(0.05)
    return made


@pytest.fixture(scope="module")
def ours(folder):
    return list(build_data(str(folder), shuffle_group=2, **RANGES).iterate(0, 24))


@pytest.mark.parametrize("workers", [0, 2])
def test_ranges_of_the_next_batches_come_ahead_each_once(folder, ours, tmp_path, workers):
    with serving(folder, fault=dice(seed=1, share=1.0, faults=("stall",)), stall=0.01) as web:
        plain = by_ranges(web, tmp_path / "plain")
        plain._ahead = None
        assert_same(ours, list(plain.iterate(0, 24)))
        fetched, ranges = web.requests["bytes"], asked(web)
        data = by_ranges(web, tmp_path / "c", workers=workers)
        assert_same(ours, used(data.iterate(0, 24)))
        # What is asked for without looking ahead, to the byte, and none of it twice.
        assert web.requests["bytes"] == fetched
        assert asked(web) == ranges and set(ranges.values()) == {1}
        missed = [one.work.figures()["data_cache_misses"] for one in (plain, data)]
        assert missed[1] < 0.6 * missed[0]


def test_no_range_is_fetched_that_the_run_does_not_read(folder, tmp_path):
    with serving(folder) as web:
        plain = by_ranges(web, tmp_path / "plain")
        plain._ahead = None
        list(plain.iterate(0, 5))
        fetched = web.requests["bytes"]
        used(by_ranges(web, tmp_path / "c").iterate(0, 5))
        assert web.requests["bytes"] == fetched


def test_ranges_of_all_files_of_mixtures_and_of_another_start_come_so_too(folder, tmp_path):
    def opened(place, cache, **options):
        return open_loader(
            f"{place}/{{000..007}}.tar",
            batch_size=8,
            collate=None,
            map=lambda files: {k: v for k, v in files.items() if k != "__url__"},
            **{"rank": 2, "world_size": 4, "cache_dir": cache} | options,
        )

    with serving(folder) as web:
        local = opened(folder, None)
        expected = [*local, *local]
        data = opened(web.url, str(tmp_path / "c"))
        web.log.clear()
        assert used(data) + used(data) == expected
        again = asked(web)
        assert max(again.values()) == 1
        assert used(data.data.iterate(0, 3))  # once more, all kept
        assert asked(web) == again


@pytest.mark.parametrize("fault", FAULTS)
def test_batches_of_ranges_are_equal_whatever_becomes_of_it(
    folder, ours, tmp_path, monkeypatch, fault
):
    with serving(folder) as web:
        data = by_ranges(web, tmp_path / "c")
        FAULTS[fault](monkeypatch)
        assert_same(ours, list(data.iterate(0, 24)))


@pytest.mark.parametrize("gb", [1.0, 0.0002])
def test_batches_of_ranges_are_equal_where_pieces_go(folder, ours, tmp_path, gb):
    cache = tmp_path / "c"
    with serving(folder) as web:
        made = []
        for number, batch in enumerate(by_ranges(web, cache, cache_gb=gb).iterate(0, 24)):
            made.append(batch)
            time.sleep(0.02)
            assert sum(path.stat().st_size for path in cache.rglob("*-*")) <= gb * 1e9
            if number % 5 == 4:
                for path in [*cache.rglob("*-*")][::2]:
                    path.unlink(missing_ok=True)
        assert_same(ours, made)


def test_no_more_ranges_are_fetched_ahead_than_are_kept(folder, tmp_path):
    gb = 0.00004
    with serving(folder) as web:
        plain = by_ranges(web, tmp_path / "plain")
        plain._ahead = None
        list(plain.iterate(0, 6))
        behind = web.requests["bytes"]
        batches = by_ranges(web, tmp_path / "c", cache_gb=gb).iterate(0, 24)
        for _ in range(6):
            next(batches)
            time.sleep(0.2)
        read = web.requests["bytes"]
        time.sleep(0.5)
        assert web.requests["bytes"] == read
        assert 0 < read - behind <= 0.5 * gb * 1e9
