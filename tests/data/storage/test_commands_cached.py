"""Commands read remote shards through a cache that they are given; each byte is fetched once."""

from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.data.config import DataConfig
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.storage.cache import Cache, asked_for, caching
from tests.data.shard_files import build_data, write_set
from tests.data.storage.fault_server import serving
from tests.data.storage.test_remote import assert_same

COMPARED = 8 * 3 * 4096
"""Bytes of three pieces of each shard, by which it is told from others."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "set"
    write_set(folder, (9, 8, 7, 9, 8, 7, 9, 8))
    return folder


def set_bytes(folder) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


@pytest.mark.parametrize("first", ["index", "check", "stats", "view"])
def test_a_shard_is_fetched_once_for_all_commands_and_training(folder, tmp_path, capsys, first):
    cache = str(tmp_path / "c")
    with serving(folder) as web:
        data = f"{web.url}/{{000..007}}.tar"
        commands = {
            "index": ["data", "index", data],
            "check": ["data", "check", data],
            "stats": ["data", "stats", data, "--json", str(tmp_path / "s.json")],
            "view": ["data", "view", data, "--num", "1000", "--out", str(tmp_path / "v.html")],
        }
        order = [first, *(name for name in commands if name != first)]
        for name in order:
            assert main([*commands[name], "--cache-dir", cache, "--cache-gb", "1"]) == 0, name
        trained = build_data(data, shuffle_group=2, caption_lines=False, cache_dir=cache)
        assert_same(
            list(build_data(str(folder), shuffle_group=2).iterate(0, 16)),
            list(trained.iterate(0, 16)),
        )
        # Each looks at a few pieces to tell that the shards are those that were indexed; check
        # does so twice, since it keeps no index.
        assert web.requests["bytes"] <= set_bytes(folder) + 8 * COMPARED
    assert asked_for() is None


@pytest.mark.parametrize(("workers", "seed"), [("0", "1"), ("2", "3")])
def test_shards_are_made_of_the_cache(folder, tmp_path, workers, seed):
    """In a drawn order, and parted: every byte is fetched once, and the shards are those that files
    of this machine give."""
    cache = ["--cache-dir", str(tmp_path / "c"), "--cache-gb", "1"]
    how = ["--samples-per-shard", "9", "--seed", seed, "--workers", workers]
    parts = ["--fractions", "train=0.7", "val=0.3"]
    with serving(folder) as web:
        data = f"{web.url}/{{000..007}}.tar"
        for name, words in {"make": [], "split": parts}.items():
            for place, each, also in (("web", data, cache), ("here", str(folder), [])):
                out = ["--out", str(tmp_path / name / place)]
                assert main(["data", name, each, *out, *how, *words, *also]) == 0
        assert web.requests["bytes"] <= set_bytes(folder) + 8 * COMPARED
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("here/**/*.tar"))
    assert len(made) > 14
    for path in made:
        twin = tmp_path / path.parts[0] / "web" / Path(*path.parts[2:])
        assert (tmp_path / path).read_bytes() == twin.read_bytes(), path
    assert asked_for() is None


def test_without_it_each_command_fetches_anew(folder, tmp_path):
    with serving(folder) as web:
        data = f"{web.url}/{{000..007}}.tar"
        for _ in range(2):
            assert main(["data", "check", data]) == 0
        assert web.requests["bytes"] > 3 * set_bytes(folder)


def test_starting_without_indexes_fills_the_cache(folder, tmp_path):
    with serving(folder) as web:
        data = build_data(
            f"{web.url}/{{000..007}}.tar", caption_lines=False, cache_dir=str(tmp_path / "c")
        )
        assert web.requests["bytes"] >= set_bytes(folder)
        web.requests.clear()
        list(data.iterate(0, 16))
        assert web.requests["bytes"] == 0


def test_what_is_opened_within_reads_through_it(folder, tmp_path):
    with serving(folder) as web:
        cache = Cache(str(tmp_path / "c"), max_bytes=10**8)
        with caching(cache):
            source = ShardSource(f"{web.url}/{{000..007}}.tar")
            same = DataConfig(train="x", cache_dir=str(tmp_path / "c")).open_cache()
            other = DataConfig(train="x", cache_dir=str(tmp_path / "o"), cache_gb=0.1).open_cache()
        web.requests.clear()
        for number in range(source.num_samples):
            source.read(number)
        assert web.requests["bytes"] == 0
        assert same is cache and other is not cache


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cache-gb", "1"], "--cache-gb = 1 does nothing without --cache-dir"),
        (["--cache-dir", "FILE/below"], "cannot be written"),
        (["--cache-dir", "c", "--cache-gb", "1e9"], "is more than the disk"),
        (["--cache-dir", "c", "--cache-gb", "0"], "--cache-gb"),
    ],
)
def test_options_that_cannot_be(folder, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    assert main(["data", "check", str(folder), *options]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1 and "data.cache" not in told
