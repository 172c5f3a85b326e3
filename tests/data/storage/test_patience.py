"""A disk's hiccup costs no run, no sample and no index; what is wrong for good is told at once."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.data import members
from mmtrain.data.config import DataConfig
from mmtrain.data.shards import opening as shard_opening
from mmtrain.data.shards import patterns, reading
from mmtrain.data.shards.check import index_shards
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.storage import patience
from mmtrain.data.storage.patience import may_pass, patiently
from mmtrain.errors import UsageError
from tests.data.shard_files import build_data, encoded, picture, write_set

PASSING = ["EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "ENFILE", "EMFILE", "ECONNRESET", "EHOSTDOWN"]
LASTING = ["ENOENT", "EACCES", "ENOTDIR", "EISDIR", "ELOOP"]


def fault(name: str, path: object = None) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number), *([] if path is None else [str(path)]))


class Faults:
    """Makes calls of the system fail: the first `count` of each that are about some file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, *, count: int, about: str = ""):
        self.name, self.left, self.about, self.met = name, count, about, 0
        self.monkeypatch = monkeypatch

    def at(self, owner: Any, call: str) -> "Faults":
        real = getattr(owner, call)

        def flaky(*arguments: Any, **options: Any) -> Any:
            if self.left and self.about in str(arguments[0]):
                self.left -= 1
                self.met += 1
                raise fault(self.name, arguments[0])
            return real(*arguments, **options)

        self.monkeypatch.setattr(owner, call, flaky)
        return self


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """They double from here on, and are waited for."""
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)


@pytest.fixture
def train(tmp_path: Path) -> str:
    return write_set(tmp_path / "train", (3, 4))


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    calls = []
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: calls.append(1) or real(*a, **k))
    return calls


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("call", ["pread", "open"])
def test_reads_and_opening_are_tried_again(train, monkeypatch, call, name):
    expected = ShardSource(train).read(5)
    source = ShardSource(train)
    faults = Faults(monkeypatch, name, count=2, about=".tar" if call == "open" else "").at(os, call)
    assert source.read(5) == expected and faults.met == 2


@pytest.mark.parametrize("name", ["EIO", "ESTALE"])
@pytest.mark.parametrize("call", ["open", "pread", "stat", "listdir"])
@pytest.mark.parametrize("known", [False, True])
def test_a_start_is_patient_too(train, monkeypatch, known, call, name):
    """Listing, opening and indexing, of shards with indexes and without: none is lost."""
    if known:
        index_shards(train)
    faults = Faults(monkeypatch, name, count=2).at(os, call)
    assert ShardSource(train).num_samples == 7
    assert faults.met == 2


@pytest.mark.parametrize("moment", ["start", "run"])
def test_an_index_that_cannot_be_read_just_now_is_not_made_anew(train, monkeypatch, moment):
    index_shards(train)
    source = ShardSource(train)
    module = shard_opening if moment == "start" else reading
    made = count_calls(monkeypatch, module, "build_index")
    faults = Faults(monkeypatch, "EIO", count=2, about=".index").at(Path, "open")
    if moment == "start":
        source = ShardSource(train, verify=True)
    assert source.read(4) and made == [] and faults.met == 2


def test_a_hiccup_inside_an_index_is_none_of_its_zip(train, monkeypatch):
    """zipfile takes a directory that it cannot read for a file that is no zip."""
    index_shards(train)
    made = count_calls(monkeypatch, shard_opening, "build_index")
    real, left = Path.open, [2]

    class Flaky:
        def __init__(self, stream: Any):
            self.stream = stream

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

        def __enter__(self) -> "Flaky":
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def seek(self, offset: int, whence: int = 0) -> int:
            if whence == 2 and left[0]:
                left[0] -= 1
                raise fault("EIO")
            return self.stream.seek(offset, whence)

    monkeypatch.setattr(Path, "open", lambda path, *a, **k: Flaky(real(path, *a, **k)))
    assert ShardSource(train, verify=True).num_samples == 7
    assert made == [] and left == [0]


@pytest.mark.parametrize("name", PASSING[::4])
def test_patience_ends(train, monkeypatch, name):
    source = ShardSource(train, retry_seconds=0.3)
    faults = Faults(monkeypatch, name, count=10**9).at(os, "open")
    start = time.monotonic()
    with pytest.raises(OSError, match=r"tar cannot be opened, tried for 0.3 s .data.retry_seconds"):
        source.read(5)
    assert faults.met > 2 and 0.3 <= time.monotonic() - start < 5
    with pytest.raises(UsageError, match=r"^data.train: .*tar cannot be read: .*0.3 s"):
        ShardSource(train, retry_seconds=0.3)


def test_a_run_ends_in_one_line_with_its_own_patience(train, monkeypatch):
    data = build_data(train, retry_seconds=0.0, batch_size=2)
    assert DataConfig(train="x").retry_seconds > 1
    faults = Faults(monkeypatch, "EIO", count=10**9).at(os, "pread")
    with pytest.raises(
        UsageError, match=r"tried for 0 s .*Input/output error.*; mend that and go on"
    ):
        data.batch(0)
    assert faults.met == 1
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="retry_seconds"):
            DataConfig(train="x", retry_seconds=wrong)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: path.unlink(),
        lambda path: path.unlink() or path.mkdir(),
        lambda path: path.unlink() or path.symlink_to("nowhere.tar"),
        lambda path: path.unlink() or path.symlink_to(path),
    ],
)
def test_what_lasts_is_told_at_once(train, break_it: Callable[[Path], object]):
    path = Path(train).parent / "001.tar"
    break_it(path)
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"001\.tar") as caught:
        ShardSource((str(path.parent / "000.tar"), str(path)))
    assert time.monotonic() - start < 5 and "tried for" not in str(caught.value)


def test_a_glob_drops_no_link_that_leads_nowhere(train):
    for pattern in (train, str(Path(train).parent), str(Path(train).parents[1] / "**" / "*.tar")):
        assert ShardSource(pattern).num_samples == 7
    (Path(train).parent / "002.tar").symlink_to("gone.tar")
    for pattern in (train, str(Path(train).parent), str(Path(train).parents[1] / "**" / "*.tar")):
        with pytest.raises(UsageError, match=r"002.tar is a link that leads nowhere"):
            ShardSource(pattern)


@pytest.mark.parametrize("name", PASSING + LASTING)
def test_which_faults_may_pass(name: str):
    calls = []

    def attempt() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise fault(name)
        return "read"

    assert may_pass(fault(name)) == (name in PASSING)
    if name in PASSING:
        assert patiently(attempt, seconds=5) == "read" and len(calls) == 3
        return
    with pytest.raises(OSError):
        patiently(attempt, seconds=5)
    assert len(calls) == 1


def test_other_sources_are_as_patient(tmp_path, monkeypatch):
    for number in range(3):
        folder = tmp_path / "classes" / "cat"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encoded(picture(seed=number), "PNG"))
    rows = [f"classes/cat/{number}.png,a cat" for number in range(3)]
    manifest = tmp_path / "pairs.csv"
    manifest.write_text("\n".join(["filepath,txt", *rows]) + "\n")
    for train in (str(tmp_path / "classes"), str(manifest)):
        data = build_data(train, batch_size=3)
        faults = Faults(monkeypatch, "EIO", count=2, about=".png").at(os, "open")
        assert data.batch(0).valid_B.all() and faults.met == 2
        impatient = build_data(train, batch_size=3, retry_seconds=0.0)
        faults = Faults(monkeypatch, "EIO", count=1, about=".png").at(os, "open")
        with pytest.raises(UsageError, match="Input/output error"):
            impatient.batch(0)


def test_a_disk_that_stays_away_is_not_waited_for_at_each_sample(train, monkeypatch):
    source = ShardSource(train, retry_seconds=0.4)
    faults = Faults(monkeypatch, "EIO", count=10**9).at(os, "pread")
    start = time.monotonic()
    for sample in range(7):
        with pytest.raises(OSError):
            source.read(sample)
    assert time.monotonic() - start < 1.2
    faults.left = 0
    assert source.read(3)  # it is back, and so is the patience
    faults.left, faults.met = 2, 0
    assert source.read(4) and faults.met == 2


DEBUG = "mmtrain/demo/debug"
RUN = "--run-dir {run} --train.steps 1"
PATIENT = {
    "eval retrieval": "--model {run} --data {shard} --out {out}.json --retry-seconds 77",
    "eval zero-shot": "--model {run} --data {shard} --classes {classes} --out {out}.json "
    "--retry-seconds 77",
    "embed": "--model {run} --data {shard} --out {out} --workers 1 --retry-seconds 77",
    "train": "configs/debug_clip.toml --run-dir {out} --train.steps 1 --data.retry_seconds 77 "
    "--eval.retrieval [{{name='x',data='{shard}'}}]",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    assert main(["train", "configs/debug_clip.toml", *RUN.format(run=run).split()]) == 0
    return run


@pytest.mark.parametrize("command", PATIENT)
def test_whatever_reads_has_the_patience_that_is_asked_for(
    command: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's evaluations as its training, and every command; tests of workers see the pickle."""
    seen: set[float] = set()
    real = patience.patiently

    def note(*arguments: Any, seconds: float, **options: Any) -> Any:
        seen.add(seconds)
        return real(*arguments, seconds=seconds, **options)

    for module in (members, reading, shard_opening, patterns):
        monkeypatch.setattr(module, "patiently", note)
    places = {"run": run, "shard": f"{DEBUG}/train.tar", "classes": f"{DEBUG}/classes.json"}
    words = PATIENT[command].format(**places, out=tmp_path / "out").split()
    assert main([*command.split(), *words]) == 0
    assert seen == {77.0}
    seen.clear()
    ShardSource(f"{DEBUG}/train.tar").read(0)
    assert seen == {patience.PATIENCE}
