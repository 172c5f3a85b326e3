"""The cache on disk: the same batches with it on, off, full, emptied, spoilt and killed."""

import itertools
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from mmtrain.data.config import DataConfig
from mmtrain.data.order.plan import EpochPlan
from mmtrain.data.shards.cataloguing import write_catalogues
from mmtrain.data.shards.opening import open_shards
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.evict import Budget
from mmtrain.data.storage.open import open_file
from mmtrain.errors import UsageError
from tests.data.shard_files import build_data, write_set
from tests.data.storage.fault_server import dice, serving
from tests.data.storage.test_remote import assert_same

MB = 1 << 20


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight shards of real images, 600 KB in all."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    write_set(folder, (9, 8, 7, 9, 8, 7, 9, 8))
    return folder


@pytest.fixture(scope="module")
def local(folder):
    return list(build_data(str(folder), shuffle_group=2).iterate(0, 40))


def through(web, cache, *, start=0, stop=40, workers=0, gb=1.0, **options):
    data = build_data(
        f"{web.url}/{{000..007}}.tar",
        shuffle_group=2,
        workers=workers,
        cache_dir=str(cache),
        cache_gb=gb,
        **options,
    )
    return data.iterate(start, stop)


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*-*") if path.is_file())


def size(cache: Path) -> int:
    return sum(path.stat().st_size for path in files(cache))


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (3, 1), (0, 4)])
def test_batches_are_equal_and_every_byte_is_fetched_once(
    folder, local, tmp_path, workers, threads
):
    with serving(folder) as web:
        options = {"workers": workers, "threads": threads, "caption_lines": False}
        open_shards(f"{web.url}/{{000..007}}.tar")  # indexing would fill the cache
        made = through(web, tmp_path / "c", **options)
        web.requests.clear()
        assert_same(local, list(made))
        assert web.requests["bytes"] == sum(p.stat().st_size for p in folder.glob("*.tar"))
        web.requests.clear()
        assert_same(local, list(through(web, tmp_path / "c")))
        # What tells that the shards are those that were indexed.
        assert web.requests["bytes"] <= 8 * 3 * 4096
    assert not list((tmp_path / "c").rglob("*.partial"))


def test_a_full_cache_keeps_to_its_bytes(folder, local, tmp_path):
    cache, gb = tmp_path / "c", 0.0002
    with serving(folder) as web:
        for step, (batch, expected) in enumerate(
            zip(through(web, cache, gb=gb), local, strict=True)
        ):
            assert_same([expected], [batch])
            assert size(cache) <= gb * 1e9, step
    assert len(files(cache)) > 1


def test_ranges_are_kept_where_others_read_the_rest(folder, tmp_path):
    expected = build_data(str(folder), shuffle_group=2, rank=3, world_size=4, batch_size=8)
    with serving(folder) as web:
        options = {"rank": 3, "world_size": 4, "batch_size": 8, "caption_lines": False}
        made = through(web, tmp_path / "c", stop=8, **options)
        web.requests.clear()
        assert_same(list(expected.iterate(0, 8)), list(made))
        whole = sum(p.stat().st_size for p in folder.glob("*.tar"))
        assert web.requests["bytes"] < 0.35 * whole


DAMAGE = {
    "emptied": lambda path, rng: path.write_bytes(b""),
    "cut": lambda path, rng: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path, rng: path.write_bytes(path.read_bytes() + b"x"),
    "flipped": lambda path, rng: _flip(path, rng),
    "gone": lambda path, rng: path.unlink(),
    "noise": lambda path, rng: path.write_bytes(rng.randbytes(path.stat().st_size)),
}


def _flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_spoilt_cache_changes_no_batch(folder, local, tmp_path, damage):
    cache, rng = tmp_path / "c", random.Random(damage)
    with serving(folder) as web:
        list(through(web, cache))
        for batch, expected in zip(through(web, cache), local, strict=True):
            assert_same([expected], [batch])
            if kept := files(cache):
                DAMAGE[damage](rng.choice(kept), rng)


def test_a_folder_that_goes_away_or_fills_up_is_read_past(folder, local, tmp_path, monkeypatch):
    cache = tmp_path / "c"
    with serving(folder) as web:
        made = through(web, cache)
        first = [next(made) for _ in range(5)]
        shutil.rmtree(cache)
        cache.write_text("no folder")
        assert_same(local, first + list(made))

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        cache.unlink()
        with pytest.raises(UsageError, match=r"cache_dir = .* cannot be written \(No space left"):
            through(web, cache)
        monkeypatch.undo()
        made = through(web, cache)
        monkeypatch.setattr(os, "pwrite", full)
        assert_same(local, list(made))
    assert not list(cache.rglob("*.partial"))


def _run(url, cache, gb):
    class Web:
        pass

    Web.url = url
    for _ in through(Web, cache, gb=gb):
        pass


def test_jobs_that_are_killed_leave_nothing_that_the_next_trips_over(folder, local, tmp_path):
    context, rng = multiprocessing.get_context("forkserver"), random.Random(0)
    cache, gb = tmp_path / "c", 0.0004
    with serving(folder, fault=dice(seed=2, share=0.5, faults=("stall",)), stall=0.02) as web:
        jobs = [context.Process(target=_run, args=(web.url, cache, gb)) for _ in range(3)]
        for job in jobs:
            job.start()
        while not files(cache):
            time.sleep(0.01)
        for job in jobs:
            time.sleep(rng.random() / 5)
            job.kill()
            job.join()
        assert_same(local, list(through(web, cache, gb=gb)))
    assert size(cache) <= gb * 1e9


def test_another_content_is_never_taken_for_what_was_kept(tmp_path):
    place = tmp_path / "a.bin"
    cache = Cache(str(tmp_path / "c"), max_bytes=10 * MB)
    with serving(tmp_path) as web:
        for content in (b"first" * 1000, b"other" * 1000):
            place.write_bytes(content)
            web.etag_suffix = content[:5].decode()
            with open_file(f"{web.url}/a.bin", cache=cache) as file:
                assert file.read(0, 5000) == file.read(0, 5000) == content


def test_what_is_wanted_last_goes_first(tmp_path):
    budget = Budget(tmp_path, max_bytes=1000)
    for number in range(10):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "0-100").write_bytes(bytes(100))
        os.utime(tmp_path / f"{number}" / "0-100", (number, number))
    budget.count_anew()
    budget.next_uses["plan"] = lambda there: {"0": 5, "1": 0, "2": 9, "3": 1, "9": 2}
    descriptor = os.open(tmp_path / "9" / "100-500.partial", os.O_RDWR | os.O_CREAT)
    assert budget.make_room(500, descriptor=descriptor)
    assert os.fstat(descriptor).st_size == 500
    os.close(descriptor)
    # No plan names 4 to 8; of the others 2 is wanted last.
    assert sorted(path.parent.name for path in tmp_path.rglob("0-100")) == ["0", "1", "3", "9"]


@pytest.mark.parametrize("catalogued", [False, True])
def test_the_cache_hears_of_what_it_holds_alone(folder, tmp_path, catalogued):
    """Not of 40,000 shards at every eviction, of which it holds ten."""
    with serving(folder) as web:
        pattern, cache = f"{web.url}/{{000..007}}.tar", Cache(str(tmp_path / "c"), max_bytes=MB)
        shards = open_shards(pattern)  # indexing would fill the cache
        if catalogued:
            write_catalogues(shards)
        source = ShardSource(pattern, cache=cache)
        source.expect(lambda: np.array([6, 2, 7, 0, 1, 3, 4, 5]))
        for shard in (2, 4):
            source.read(sum(source.shard_sizes[:shard]))
        (next_use,) = cache.budget.next_uses.values()
        held = {path.parent.name: path for path in files(tmp_path / "c")}
        assert sorted(next_use(held).values()) == [1, 6]
        assert next_use({*held, "another", "0" * 32}) == next_use(held)
        assert next_use(set()) == {}
    plain = ShardSource(str(folder), cache=cache)
    plain.expect(lambda: np.arange(8))
    assert [use(held) for use in cache.budget.next_uses.values()][-1] == {}


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("epoch", [0, 3])
def test_shards_are_told_by_when_they_are_wanted(epoch, lanes):
    plan = EpochPlan([3, 5, 2, 4, 6, 1], seed=1, shuffle_group=2, lanes=lanes)
    shard_of = [shard for shard, size in enumerate([3, 5, 2, 4, 6, 1]) for _ in range(size)]
    order = [shard_of[plan.sample(epoch, p)] for p in range(plan.num_samples)]
    bounds = [*itertools.pairwise(plan.lane_bounds(epoch).tolist())]
    for lane, (low, high) in enumerate(bounds):
        for inside in range(high - low):
            told = plan.shards_from(epoch, low + inside)
            assert sorted(told.tolist()) == [*range(6)], lane
            # Those that this epoch still reads, before those that only the next one does.
            left = [order[start + inside : stop] for start, stop in bounds]
            coming = {shard for part in left for shard in part}
            assert coming <= {*told[: len(coming) + lanes]}
            assert order[low + inside] in told[: 2 * lanes]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_gb": 1.0}, "does nothing without cache_dir"),
        ({"cache_gb": 0.0, "cache_dir": "c"}, "must be above 0"),
        ({"cache_gb": float("inf"), "cache_dir": "c"}, "must be above 0"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(train="x", **options)


def test_a_cache_larger_than_its_disk_or_in_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is more than the disk"):
        DataConfig(train="x", cache_dir=str(tmp_path), cache_gb=1e9).open_cache()
    with pytest.raises(UsageError, match="cannot be written"):
        DataConfig(train="x", cache_dir=str(tmp_path / "file")).open_cache()


def test_local_shards_are_not_copied(folder, tmp_path):
    source = ShardSource(str(folder), cache=Cache(str(tmp_path / "c"), max_bytes=MB))
    source.read(0)
    assert files(tmp_path / "c") == []
