"""Pieces of the cache stay open: a look-up costs what a read from a disk does, and nothing that was
dropped keeps its room."""

import os
import random
from collections import Counter

import pytest

from mmtrain.data.shards.source import ShardSource
from mmtrain.data.storage import cache as cache_module
from mmtrain.data.storage import piece as piece_module
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.cached import CachedFile
from mmtrain.data.storage.evict import drop
from mmtrain.data.storage.file import LocalFile
from tests.data.shard_files import write_set
from tests.data.storage.fault_server import serving

KIB = 1 << 10
SYSTEM = ("open", "close", "pread", "read", "fstat", "stat", "utime", "lseek", "listdir", "scandir")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """Of the system, by name."""
    counts: Counter[str] = Counter()

    def counted(name, call):
        def wrapper(*arguments, **options):
            counts[name] += 1
            return call(*arguments, **options)

        return wrapper

    for name in SYSTEM:
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return counts


class Versioned(LocalFile):
    """A file that says what changes with its content, as a store's does."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.version = "1"


@pytest.fixture
def kept(tmp_path):
    """A file of 1 MiB in 8 pieces."""
    path = tmp_path / "file"
    path.write_bytes(random.Random(0).randbytes(1024 * KIB))
    cache = Cache(str(tmp_path / "c"), max_bytes=2048 * KIB)
    file = CachedFile(Versioned(str(path)), cache)
    file.read(0, file.size)
    file.read(0, file.size)
    return file


def test_a_sample_takes_as_many_calls_from_a_full_cache_as_from_a_disk(tmp_path, calls):
    write_set(tmp_path / "set", (9, 8, 7))
    with serving(tmp_path / "set") as web:
        disk = ShardSource(str(tmp_path / "set"))
        cache = Cache(str(tmp_path / "c"), max_bytes=10**9)
        full = ShardSource(f"{web.url}/{{000..002}}.tar", cache=cache)
        taken = {}
        for name, source in (("disk", disk), ("cache", full)):
            files = [source.read(sample) for sample in range(24)]  # opens what stays open
            files += [source.read(sample) for sample in range(24)]
            calls.clear()
            web.requests.clear()
            assert [source.read(sample) for sample in range(24)] == files[:24] == files[24:]
            taken[name] = dict(calls)
            assert web.requests["bytes"] == 0
        assert taken["disk"] == taken["cache"] == {"pread": 24}


def test_a_piece_that_is_dropped_gives_back_its_room_while_others_have_it_open(tmp_path, kept):
    whole = kept.read(0, kept.size)
    for path in (tmp_path / "c").glob("*/*-*"):
        held = os.open(path, os.O_RDONLY)
        drop(str(path))
        assert not path.exists() and os.fstat(held).st_blocks == 0
        os.close(held)
    assert kept.read(0, kept.size) == whole
    assert len(list((tmp_path / "c").glob("*/*-*"))) == 8  # fetched again


def test_a_piece_that_somebody_removed_is_not_held_for_long(tmp_path, kept, monkeypatch):
    whole = kept.read(0, kept.size)
    for path in (tmp_path / "c").glob("*/*-*"):
        path.unlink()
    assert kept.read(0, kept.size) == whole
    assert not list((tmp_path / "c").glob("*/*-*"))
    monkeypatch.setattr(piece_module, "_AGE", 0.0)
    assert kept.read(0, kept.size) == whole
    assert len(list((tmp_path / "c").glob("*/*-*"))) == 8


@pytest.mark.parametrize("most", [1, 3, 8, 100])
def test_no_more_pieces_are_open_than_may_be(kept, monkeypatch, most):
    monkeypatch.setattr(cache_module, "_MOST_OPEN", most)
    whole = kept.read(0, kept.size)
    before = len(os.listdir("/proc/self/fd"))
    kept._cache._opened.clear()
    bare = len(os.listdir("/proc/self/fd"))
    draw = random.Random(most)
    for _ in range(100):
        at, size = draw.randrange(len(whole)), draw.choice((1, 4 * KIB, 100 * KIB))
        assert kept.read(at, size) == whole[at : at + size]
    assert before >= bare
    assert len(os.listdir("/proc/self/fd")) - bare == min(most, 8)


def test_what_others_may_not_touch_is_read_all_the_same(tmp_path, kept, monkeypatch):
    """Pieces of another user: their times cannot be set."""
    whole = kept.read(0, kept.size)
    kept._cache._opened.clear()

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    for path in (tmp_path / "c").glob("*/*-*"):
        os.utime(path, (1, 1))
    monkeypatch.setattr(os, "utime", refused)
    assert kept.read(0, kept.size) == whole
    assert {path.stat().st_mtime for path in (tmp_path / "c").glob("*/*-*")} == {1}
