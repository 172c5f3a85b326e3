"""hf://datasets/...: shards of a hub's data set, by ranges, of one commit."""

import json
import re

import pytest

from mmtrain.cli import main
from mmtrain.data.shards.patterns import expand_patterns
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.storage import hub as storage_hub
from mmtrain.data.storage import stores
from mmtrain.data.storage.patience import waiting
from mmtrain.errors import UsageError
from tests.data.shard_files import write_set
from tests.data.storage.fake_hub import REPO, hub_of
from tests.data.storage.test_remote import assert_same, batches

MAIN, V1 = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shards of real images in a folder of the data set."""
    top = tmp_path_factory.mktemp("hub")
    write_set(top / "data", (7, 9, 6))
    (top / "README.md").write_text("a card")
    return top


@pytest.fixture
def hub(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    storage_hub.COMMITS.clear()
    stores._store.cache_clear()
    with hub_of(folder) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
    storage_hub.COMMITS.clear()


def expand(pattern):
    return expand_patterns(pattern, key="data.train")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_disk(hub, folder, workers):
    local = batches(str(folder / "data"))
    assert_same(local, batches(f"hf://datasets/{REPO}/data/", workers=workers))
    address = f"hf://datasets/{REPO}@v1/data/{{000..002}}.tar"
    assert_same(local, batches(address, workers=workers))


def test_what_an_address_stands_for(hub):
    names = [f"data/{n:03}.tar" for n in range(3)]
    for revision, commit in (("", MAIN), ("@main", MAIN), ("@v1", V1), (f"@{V1}", V1)):
        want = [f"hf://datasets/{REPO}@{commit}/{name}" for name in names]
        root = f"hf://datasets/{REPO}{revision}"
        for pattern in ("data/", "data", "data/*.tar", "**/*.tar", "data/{000..002}.tar"):
            assert expand(f"{root}/{pattern}") == want, pattern
        assert expand(f"{root}/data/001.tar") == want[1:2]


def test_a_commit_is_asked_for_once_and_stays(hub):
    first = expand(f"hf://datasets/{REPO}/data/000.tar")
    hub.commits["main"] = V1
    assert expand(f"hf://datasets/{REPO}/data/000.tar") == first
    assert sum("/revision/" in path for path in hub.requests) == 1


def test_a_fingerprint_is_of_the_content(hub, folder):
    assert ShardSource(f"hf://datasets/{REPO}/data/").fingerprint == (
        ShardSource(str(folder / "data")).fingerprint
    )


def test_the_token_opens_the_hub_and_goes_no_further(hub, monkeypatch, capsys):
    hub.token = "hf_secret-of-the-test"
    with pytest.raises(UsageError, match="private: then set HF_TOKEN"):
        expand(f"hf://datasets/{REPO}/data/")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert main(["data", "check", f"hf://datasets/{REPO}/data/"]) == 0
    assert hub.files.logins == {""}
    told = capsys.readouterr()
    assert "secret" not in told.out + told.err


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"hf://datasets/{REPO}@v7/data/", "it has no such revision"),
        ("hf://datasets/some-one/none/data/", "there is no such data set"),
        (f"hf://datasets/{REPO}/none/", "none"),
        ("hf://some-one/a-model/x.tar", "write hf://datasets/OWNER/NAME/PATH"),
        ("hf://datasets/pairs", "write hf://datasets/OWNER/NAME/PATH"),
    ],
)
def test_mistakes_are_one_line(hub, address, said, capsys):
    assert main(["data", "check", address]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.search(said, lines[0]), lines


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "it is gated; ask for access"), (429, "busy"), (500, "the hub answers 500")],
)
def test_what_the_hub_refuses_is_one_line(hub, status, said, capsys):
    hub.status = status
    with waiting(0):
        assert main(["data", "check", f"hf://datasets/{REPO}/data/"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0], lines


def test_a_hub_that_is_not_there_is_one_line(hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")
    with waiting(0):
        assert main(["data", "check", f"hf://datasets/{REPO}/data/"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "the hub cannot be reached" in lines[0], lines


def test_nothing_is_fetched_where_that_is_off(hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["data", "check", f"hf://datasets/{REPO}/data/"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert hub.requests == []


def test_a_run_records_the_commit(hub, tmp_path, capsys):
    words = ["train", "configs/debug_clip.toml", "--run-dir", str(tmp_path / "run")]
    words += ["--data.train", f"hf://datasets/{REPO}/data/", "--train.steps", "1"]
    assert main([*words, "--train.batch_size", "4"]) == 0
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["data"]["commits"] == {f"hf://datasets/{REPO}": MAIN}
    assert f"hf://datasets/{REPO} is read at commit {MAIN}" in capsys.readouterr().err
