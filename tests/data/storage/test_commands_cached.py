"""Commands read remote shards through a cache that they are given; each byte is fetched once."""

import multiprocessing
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.data.config import DataConfig
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.caches import asked_for, caching, open_cache
from mmtrain.errors import UsageError
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


@pytest.mark.parametrize(
    "first",
    ["index", *(pytest.param(name, marks=pytest.mark.slow) for name in ("check", "stats", "view"))],
)
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


@pytest.mark.parametrize(
    ("workers", "seed"), [pytest.param("0", "1", marks=pytest.mark.slow), ("2", "3")]
)
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
    assert main(["data", "check", "http://127.0.0.1:9/000.tar", *options]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1 and "data.cache" not in told


def test_a_cache_of_what_is_here_is_refused(folder, tmp_path, monkeypatch, capsys):
    """By every command that takes one, whose data are all on this machine, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.toml").write_text(f'[[knn]]\nname = "k"\ntrain = "{folder}"\ntest = "x"\n')
    local, page = str(folder), ["--out", "x.html"]
    there = sorted(folder.iterdir())
    model = ["--model", "m", "--out", "x.json"]
    for words in (
        ["data", "index", local, f"file://{folder}/000.tar"],
        ["data", "check", local],
        ["data", "view", f"{local}/000.tar::{local}/001.tar", *page],
        ["data", "stats", local, *page],
        ["data", "make", local, "--out", "d"],
        ["data", "split", local, "--out", "d", "--fractions", "a=0.5", "b=0.5"],
        ["embed", "--data", local, "--model", "m", "--out", "d"],
        ["eval", "zero-shot", "--data", local, *model],
        ["eval", "linear-probe", "--train", local, "--test", "torchvision:cifar10/test:d", *model],
        ["eval", "suite", "suite.toml", "--models", "m", "--out", "d"],
    ):
        assert main([*words, "--cache-dir", "c"]) == 2, words
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("mmtrain: error: --cache-dir has no effect on "), line
        assert " in a store" in line and line.endswith("leave it out"), line
    assert sorted(folder.iterdir()) == there and not (tmp_path / "d").exists()


def test_a_folder_has_one_size_for_all_that_read_through_it(tmp_path):
    """Who names none takes what it has; another number waits until nobody holds it."""

    def opened(gb, **options):
        return DataConfig(train="x", cache_dir=str(tmp_path / "c"), cache_gb=gb, **options)

    first = opened(0.2).open_cache()
    assert opened(None).open_cache() is first
    with pytest.raises(UsageError, match=r"cache_gb = 0.1: .* with 0.2, .* name the same"):
        opened(0.1).open_cache()
    shared = open_cache(str(tmp_path / "c"), max_bytes=None, whole=False)
    assert shared is not first and shared.budget is first.budget and shared.max_bytes == 2e8
    held = [first]
    held.append(held)  # a cycle, as a loader that failed leaves one
    del first, shared, held
    assert opened(0.1).open_cache().max_bytes == 1e8
    assert opened(None).open_cache().max_bytes == 1e8


def test_another_process_holds_it_too(tmp_path):
    context = multiprocessing.get_context("fork")
    there, here = context.Barrier(2), context.Barrier(2)

    def hold():
        cache = open_cache(str(tmp_path / "c"), max_bytes=3 * 10**8)
        there.wait()
        here.wait()
        del cache

    process = context.Process(target=hold)
    process.start()
    there.wait()
    with pytest.raises(UsageError, match=r"cache_gb = 0.1: .* with 0.3"):
        open_cache(str(tmp_path / "c"), max_bytes=10**8)
    assert open_cache(str(tmp_path / "c"), max_bytes=None).max_bytes == 3 * 10**8
    here.wait()
    process.join()
    assert open_cache(str(tmp_path / "c"), max_bytes=10**8).max_bytes == 10**8
