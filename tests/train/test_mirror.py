"""The thread that sends what a run seals: behind the run, never in its way."""

import errno
import threading
import time
from pathlib import Path

import pytest

from mmtrain.data.storage.patience import waiting
from mmtrain.train import mirror as mirrors
from mmtrain.train.copy_checkpoints import pull_checkpoint, sealed_in
from mmtrain.train.mirror import Mirror
from tests.train.copies import Failing, save


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(mirrors, "_LOOKS_EVERY", 0.02)
    monkeypatch.setattr(mirrors, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(mirrors, "_LONGEST_PAUSE", 0.1)
    with waiting(0.0):
        yield


def until(holds) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_sealed_is_sent_and_as_many_are_kept(tmp_path: Path) -> None:
    run, place, said = tmp_path / "run", Failing(tmp_path / "copy"), []
    mirror = Mirror(place, run, keep=2, say=said.append)
    for step in (1, 2, 3):
        save(run, step)
        (run / "metrics.jsonl").write_text("x" * step)
        until(lambda: not mirror.behind)
    (run / "report.html").write_text("at the end")
    assert mirror.finish(seconds=20) is None and said == []
    assert sealed_in(place.sizes()).keys() == {2, 3}
    assert (place.folder / "report.html").read_text() == "at the end"
    figures = mirror.figures()
    assert figures["mirror_step"] == 3 and figures["mirror_failures"] == 0
    assert figures["mirror_bytes"] > 3 * 4000
    assert not (run / ".mirror").exists()


def test_a_store_that_fails_is_told_once_and_tried_again(tmp_path: Path) -> None:
    run, said, is_away = tmp_path / "run", [], threading.Event()

    def before(number: int) -> None:
        if is_away.is_set():
            raise OSError(errno.ECONNREFUSED, "the connection is refused", "s3://there/a")

    place = Failing(tmp_path / "copy", before)
    is_away.set()
    save(run, 1)
    mirror = Mirror(place, run, keep=2, say=said.append)
    until(lambda: mirror.figures()["mirror_failures"] > 3)
    assert len(said) == 1 and "s3://there/a: the connection is refused" in said[0]
    is_away.clear()
    until(lambda: not mirror.behind)
    until(lambda: len(said) == 2)
    assert "step 1 is at" in said[1]
    is_away.set()
    save(run, 2)
    why = mirror.finish(seconds=0.3)
    assert why is not None and "connection is refused" in why
    assert sealed_in(place.sizes()).keys() == {1}


def test_a_slow_store_is_not_waited_for_beyond_the_bound(tmp_path: Path) -> None:
    run, hold = tmp_path / "run", threading.Event()
    save(run, 1)
    mirror = Mirror(
        Failing(tmp_path / "copy", lambda number: hold.wait(30)), run, keep=1, say=print
    )
    began = time.monotonic()
    why = mirror.finish(seconds=0.2)
    assert why == "it takes longer than 0.00333333 minutes" and time.monotonic() - began < 5
    hold.set()


def test_a_checkpoint_that_the_run_drops_meanwhile_still_gets_there(tmp_path: Path) -> None:
    """Or a store slower than the saving would never hold one."""
    run, reached, go_on = tmp_path / "run", threading.Event(), threading.Event()

    def before(number: int) -> None:
        if number > 1:
            reached.set()
            go_on.wait(20)

    save(run, 1, keep=1)
    place = Failing(tmp_path / "copy", before)
    mirror = Mirror(place, run, keep=1, say=print)
    assert reached.wait(20)
    save(run, 2, keep=1)
    assert not (run / "checkpoints/step-00000001").exists()
    place.before = lambda number: None
    go_on.set()
    until(lambda: mirror.figures()["mirror_step"] >= 1)
    assert mirror.finish(seconds=20) is None
    seals = [name for name in place.put_names if name.endswith("manifest.json")]
    sent = [int(name.split("/")[1].removeprefix("step-")) for name in seals]
    assert sent == [1, 2] and mirror.figures()["mirror_failures"] == 0
    assert pull_checkpoint(place, "checkpoints/step-00000002", tmp_path / "back")


def test_a_defect_does_not_end_the_run_either(tmp_path: Path) -> None:
    said: list[str] = []

    def before(number: int) -> None:
        raise RuntimeError("what nobody thought of")

    save(tmp_path / "run", 1)
    place = Failing(tmp_path / "copy", before)
    mirror = Mirror(place, tmp_path / "run", keep=1, say=said.append)
    until(lambda: said != [])
    assert "RuntimeError: what nobody thought of" in said[0]
    assert "nobody thought of" in (mirror.finish(seconds=0.1) or "")
