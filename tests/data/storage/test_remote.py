"""The same batches from a disk, an object store and a web server; and what these do wrong."""

import pickle
import re
import shutil
import time

import pytest
import torch

from mmtrain.cli import main
from mmtrain.data.shards import opening
from mmtrain.data.shards.check import check_shards, index_shards
from mmtrain.data.shards.patterns import expand_patterns
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.open import open_source
from mmtrain.data.storage.open import open_file
from mmtrain.errors import UsageError
from tests.data.shard_files import build_data, pairs, write_set, write_shard
from tests.data.storage.fault_server import dice, serving


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shards of real images."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    write_set(folder, (7, 9, 6))
    return folder


def batches(train, *, workers=0, **options):
    data = build_data(train, workers=workers, label_key="concept", **options)
    return list(data.iterate(0, 9))


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys == other.keys and one.bad == other.bad == ()
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other, name)), name


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_from_a_disk_a_store_and_a_web_server(folder, s3, workers):
    local = batches(str(folder))
    bucket = s3.upload(folder, "deep/er")
    assert_same(local, batches(f"{bucket}/", workers=workers))
    with serving(folder) as web:
        assert_same(local, batches(f"{web.url}/{{000..002}}.tar", workers=workers))


def test_fingerprints_are_of_the_content_not_of_the_place(folder, s3):
    bucket = s3.upload(folder, "a")
    with serving(folder) as web:
        places = (str(folder), bucket, f"{web.url}/{{000,001,002}}.tar", f"file://{folder}")
        assert len({ShardSource(place).fingerprint for place in places}) == 1


def test_patterns_of_stores(folder, s3, tmp_path):
    s3.upload(folder, "a/train")
    s3.put("a/train/notes.txt", b"none")
    s3.put("a/train/.hidden.tar", b"none")
    s3.put("a/other/7.tar", b"none")
    s3.put("dots.v1/7.tar", b"none")
    names = {n: f"{s3.url}/a/train/00{n}.tar" for n in range(3)}
    every = list(names.values())
    for pattern, expected in {
        f"{s3.url}/a/train": every,
        f"{s3.url}/a/train/": every,
        f"{s3.url}/dots.v1": [f"{s3.url}/dots.v1/7.tar"],
        f"{s3.url}/a/train/*.tar": every,
        f"{s3.url}/a/train/00[02].tar": [names[0], names[2]],
        f"{s3.url}/a/train/00?.tar": every,
        f"{s3.url}/a/*/0*.tar": every,
        f"{s3.url}/**/00*.tar": every,
        f"{s3.url}/a/*/*.tar": [f"{s3.url}/a/other/7.tar", *every],
        f"{s3.url}/a/{{train,other}}/*.tar": [f"{s3.url}/a/other/7.tar", *every],
        f"{s3.url}/a/train/{{001..002}}.tar": [names[1], names[2]],
        f"{names[1]}::{names[0]}": [names[0], names[1]],
        f"{folder}/000.tar::{names[1]}": [f"{folder}/000.tar", names[1]],
        f"file://{folder}/001.tar": [f"{folder}/001.tar"],
        "https://[::1]:80/a.tar::http://h/b.tar": ["http://h/b.tar", "https://[::1]:80/a.tar"],
        "https://h/x.tar?download=true": ["https://h/x.tar?download=true"],
    }.items():
        assert expand_patterns(pattern) == expected, pattern


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{s3}/nothing/", "the folder has no *.tar there"),
        ("{s3}/nothing/*.tar", "the glob matches nothing there"),
        ("{s3}/no.tar", "{s3}/no.tar cannot be read: there is no such object"),
        ("s3://no-such-bucket/a.tar", "there is no bucket s3://no-such-bucket"),
        ("s3://no-such-bucket/a/*.tar", "there is no bucket s3://no-such-bucket"),
        ("{web}/no.tar", "{web}/no.tar cannot be read: there is no such file"),
        ("{web}/*.tar", "a web server has no listing"),
        ("{web}/", "a web server has no listing"),
        ("{web}", "a web server has no listing"),
        ("{web}/a.csv", "of http:// tar shards are read, .csv files are not"),
        ("http://nowhere.invalid/a.tar", "its name is not known to the network"),
        ("http://127.0.0.1:9/a.tar", "the connection is refused"),
        ("ftp://host/a.tar", "ftp: is not read"),
        ("pipe:cat a.tar", "pipe: is not read"),
        ("{web}/page.tar", "is a web page, no tar"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(tmp_path, s3, pattern, message):
    (tmp_path / "page.tar").write_bytes(b"<html>" + bytes(2000))
    with serving(tmp_path) as web:
        places = {"{s3}": s3.url, "{web}": web.url}
        for name, place in places.items():
            pattern, message = pattern.replace(name, place), message.replace(name, place)
        with pytest.raises(UsageError) as caught:
            open_source(pattern, retry_seconds=0.3)
    assert "data.train" in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_denial_is_told_at_once(folder, status):
    with (
        serving(folder, fault=lambda path, number: status, head=status) as web,
        pytest.raises(UsageError, match=rf"the server denies it \({status}\); check the cred"),
    ):
        ShardSource(f"{web.url}/000.tar", retry_seconds=60)


def test_a_sample_is_one_request_and_an_index_is_read_once(folder):
    with serving(folder) as web:
        source = ShardSource(f"{web.url}/{{000..002}}.tar")
        sizes = [path.stat().st_size for path in sorted(folder.glob("*.tar"))]
        # Each shard whole, and the three pieces that tell a change.
        assert web.requests["bytes"] <= sum(sizes) + 3 * 3 * 4096
        web.log.clear()
        for sample in range(source.num_samples):
            source.read(sample)
        assert len(web.log) == source.num_samples


def test_an_index_with_checksums_reads_a_shard_once(folder, tmp_path):
    with serving(folder) as web:
        index_shards(f"{web.url}/001.tar", index_dir=str(tmp_path / "own"))
        assert web.requests["bytes"] <= (folder / "001.tar").stat().st_size + 3 * 4096
        assert check_shards(f"{web.url}/001.tar", index_dir=str(tmp_path / "own")).problems == ()


def test_shards_of_one_name_on_two_servers_have_two_indexes(tmp_path):
    for name, first in (("a", 0), ("b", 50)):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "0.tar", pairs(first, 3))
    with serving(tmp_path) as web:
        keys = [ShardSource(f"{web.url}/{n}/0.tar").key(0) for n in ("a", "b", "a")]
    assert keys == ["00000", "00050", "00000"]
    assert len(list((tmp_path / "cache/mmtrain/indexes").iterdir())) == 2


def test_a_new_etag_of_the_same_bytes_is_no_change(folder, s3, tmp_path):
    content = (folder / "000.tar").read_bytes()
    place = tmp_path / "0.tar"
    place.write_bytes(content)
    with serving(tmp_path) as web:
        url = f"{web.url}/0.tar"
        index_shards(url)
        web.etag_suffix = "again"
        assert ShardSource(url).num_samples == 7
        middle = bytearray(content)
        middle[len(middle) // 4] ^= 1
        place.write_bytes(middle)
        web.etag_suffix = "more"
        with pytest.raises(UsageError, match="changed since their checksums were made"):
            ShardSource(url)


def test_faults_that_pass_change_no_byte(folder):
    seconds = time.monotonic()
    with serving(folder, fault=dice(seed=1, share=0.3), stall=0.2) as web:
        source = ShardSource(f"{web.url}/{{000..002}}.tar", retry_seconds=30)
        local = ShardSource(str(folder))
        for sample in range(22):
            assert source.read(sample) == local.read(sample)
    assert sum(web.requests[fault] for fault in ("500", "cut", "drop", "whole")) > 5
    assert time.monotonic() - seconds < 60


def test_a_shard_that_changes_while_in_use_stops_the_run(folder):
    with serving(folder) as web:
        source = ShardSource(f"{web.url}/000.tar")
        source.read(0)
        web.etag_suffix = "other"
        with pytest.raises(UsageError, match=r"000\.tar was changed while it was in use"):
            source.read(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_goes_away_ends_the_run_with_the_shards_name(folder, workers):
    with serving(folder) as web:
        data = build_data(f"{web.url}/000.tar", workers=workers, retry_seconds=0.5)
        made = data.iterate(0, 10_000)
        next(made)
    begin = time.monotonic()
    with pytest.raises(UsageError, match=r"data\.train: .*000\.tar cannot be .*refused"):
        for _ in made:
            pass
    assert time.monotonic() - begin < 30


def test_a_fork_of_a_process_that_read_a_store_is_refused_and_does_not_hang(folder):
    import multiprocessing

    with serving(folder) as web:
        file = open_file(f"{web.url}/000.tar")
        assert file.read(0, 4) == (folder / "000.tar").read_bytes()[:4]
        again = pickle.loads(pickle.dumps(file))
        assert (again.path, again.size, again.version) == (file.path, file.size, file.version)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            told = pool.apply_async(_open_in_a_fork, (file.path,)).get(20)
        _Kept.file = file
        with multiprocessing.get_context("fork").Pool(1) as pool:
            told_too = pool.apply_async(_read_in_a_fork).get(20)
    assert "forkserver" in told and "forkserver" in told_too


def test_a_name_that_the_client_cannot_spell_is_told(s3):
    """Not as a connection that is reset and tried again, nor by a traceback."""
    s3.put("a//7.tar", b"none")
    for pattern in (f"{s3.url}/a//7.tar", f"{s3.url}/a/", f"{s3.url}/**/7.tar"):
        with pytest.raises(
            UsageError, match=r'empty part \("//"\) .* which cannot be read; rename'
        ):
            ShardSource(pattern)


class _Kept:
    file = None


def _read_in_a_fork():
    try:
        _Kept.file.read(0, 9)
    except UsageError as error:
        return str(error)
    return "read"


def _open_in_a_fork(path):
    try:
        open_file(path)
    except UsageError as error:
        return str(error)
    return "opened"


SECRETS = [
    "https://user:hush@host/a.tar",
    "https://hush@host/{0..3}.tar",
    "https://host/a.tar?X-Amz-Credential=hush&X-Amz-Signature=hush",
    "https://host/a.tar?sv=1&sig=hush",
    "https://host/b.tar::https://host/a.tar?token=hush",
    "s3://hush:hush@bucket/a.tar",
]


@pytest.mark.parametrize("pattern", SECRETS)
def test_an_address_with_a_secret_is_refused_without_repeating_it(pattern):
    with pytest.raises(UsageError, match=re.escape("***")) as caught:
        expand_patterns(pattern)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("most_compared", [1000, 0])
def test_a_catalogue_tells_of_remote_shards(folder, tmp_path, monkeypatch, most_compared):
    """From its own place, without an index; a large set's start asks the server for nothing."""
    monkeypatch.setattr(opening, "_MOST_COMPARED", most_compared)
    served = tmp_path / "served"
    shutil.copytree(folder, served, ignore=shutil.ignore_patterns("*.index"))
    kept = tmp_path / "cache/mmtrain/indexes"
    local = batches(str(folder))
    with serving(served) as web:
        pattern = f"{web.url}/{{000..002}}.tar"
        assert main(["data", "index", pattern]) == 0
        for path in kept.glob("*.index"):
            path.unlink()
        asked = web.requests.total()
        source = ShardSource(pattern)
        assert (web.requests.total() == asked) == (most_compared == 0)
        assert source.num_samples == 22
        assert_same(local, batches(pattern))
        assert [path.suffix for path in kept.iterdir()] == [".catalogue"]
        write_shard(served / "001.tar", pairs(70, 9))
        web.etag_suffix = "more"
        with pytest.raises(UsageError, match=r"changed .*(001\.tar|again)"):
            changed = ShardSource(pattern, retry_seconds=0.2)
            [changed.read(sample) for sample in range(22)]
