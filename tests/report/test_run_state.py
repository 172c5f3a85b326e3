"""How a run stands, by its folder alone."""

import fcntl
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmtrain.report.live_run import LiveRun
from mmtrain.report.run_state import RunState, lock_holder, state_of

NOW = 1e9
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked for locks")


def make(path: Path, *, step: int, total: int = 100, age: float = 0.0) -> None:
    """A run up to a step, a line every 4 s."""
    path.mkdir(exist_ok=True)
    (path / "run.json").write_text(json.dumps({"total_steps": total}))
    rows = [
        {"step": n, "samples_seen": 32 * n, "samples_per_second": 8.0} for n in range(1, step + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(path / "metrics.jsonl", (NOW - age, NOW - age))
    if (path / ".lock").exists():
        os.utime(path / ".lock", (NOW - 900, NOW - 900))


def state(path: Path) -> RunState:
    return state_of(path, LiveRun(path).read(), now=NOW)


def hold(path: str, ready: object, end: object) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    ready.set()  # type: ignore[attr-defined]
    end.wait(60)  # type: ignore[attr-defined]


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another process holds the run's lock; its file stays, as after a kill."""
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(str(path / ".lock"), ready, end))
    process.start()
    assert ready.wait(60)
    yield
    end.set()
    process.join()


@linux
def test_a_run_from_before_it_is_there_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert state(path).kind == "missing" and "is not there yet" in state(path).text
    path.mkdir()
    assert "holds no run yet" in state(path).text
    with held(path):
        assert state(path).kind == "starting"
        make(path, step=40, age=3)
        now = state(path)
        assert (now.kind, now.age) == ("training", 3.0)
        assert now.text == "training, step 40 of 100, about 4 min left"
        make(path, step=40, age=79)
        assert state(path).kind == "training"
        make(path, step=40, age=81)
        assert state(path).kind == "silent"
        assert "writes nothing at step 40 of 100, a line used to come every 4 s" in state(path).text
        make(path, step=100, age=500)
        assert state(path).kind == "finishing"
        # Somebody took the lock after the last line: what is logged is of the time before.
        os.utime(path / ".lock", (NOW - 400, NOW - 400))
        assert state(path).kind == "starting"
        assert state(path).text == "starting again; it was at step 100 of 100"
    assert lock_holder(path / ".lock") == "nobody"
    assert state(path).kind == "gone"
    assert "at step 100 of 100 before all was evaluated and exported" in state(path).text
    make(path, step=40, age=1)
    assert state(path).kind == "gone" and "its process is gone at step 40" in state(path).text
    (path / ".lock").unlink()
    assert state(path).kind == "training"  # a file system without locks, as far as it can be told
    make(path, step=40, age=20)
    assert state(path).kind == "stopped"
    assert state(path).text.endswith(f"mmtrain train {path} --resume goes on")
    make(path, step=100, age=20)
    assert state(path).kind == "ended"


@linux
def test_a_start_that_was_killed(tmp_path: Path) -> None:
    """It left its lock's file, and perhaps a recipe."""
    (tmp_path / ".lock").touch()
    for _ in range(2):
        assert state(tmp_path).kind == "gone"
        assert (
            state(tmp_path).text == "its process is gone before a step was logged, killed perhaps"
        )
        (tmp_path / "recipe.toml").write_text("[run]")


@linux
def test_to_look_takes_no_lock(tmp_path: Path) -> None:
    """Whoever starts meanwhile gets it, and whoever has it keeps it."""
    make(tmp_path, step=3)
    with held(tmp_path):
        assert [lock_holder(tmp_path / ".lock") for _ in range(3)] == ["somebody"] * 3
    with (tmp_path / ".lock").open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    before = {each.name: each.stat().st_mtime_ns for each in tmp_path.iterdir()}
    state(tmp_path)
    assert {each.name: each.stat().st_mtime_ns for each in tmp_path.iterdir()} == before


def test_a_run_of_no_known_length_and_a_folder_of_odd_things(tmp_path: Path) -> None:
    make(tmp_path, step=1)
    (tmp_path / "run.json").write_text('{"total_steps": "many"}')
    assert state(tmp_path).text == "training, step 1"
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "samples_seen": null}\n{"step": ')
    assert state(tmp_path).kind in ("training", "stopped")
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "recipe.toml").write_text("[run]")
    assert state(tmp_path).text == "holds a recipe, and no step is logged yet"


@linux
@pytest.mark.parametrize("text", ["\0" * 40 + "\n", "a\nb\n", "[1]\n", '{"step": 1\n{"st'])
def test_lines_that_cannot_be_read_are_no_missing_lines(tmp_path: Path, text: str) -> None:
    """As a disk leaves them: whoever holds the run, it is not said that nothing was logged."""
    make(tmp_path, step=1)
    (tmp_path / "metrics.jsonl").write_text(text)
    damaged = "no line of its metrics.jsonl can be read"
    assert state(tmp_path).kind == "stopped" and damaged in state(tmp_path).text
    with held(tmp_path):
        assert state(tmp_path).text == f"goes on, and {damaged}"
    assert state(tmp_path).kind == "gone" and damaged in state(tmp_path).text


@linux
@pytest.mark.parametrize("text", ["", "\n", '{"step": 1, "lo', '{"step": 0, "eval_failed": "a"}\n'])
def test_a_line_that_is_still_written_is_no_damage(tmp_path: Path, text: str) -> None:
    make(tmp_path, step=1)
    (tmp_path / "metrics.jsonl").write_text(text)
    with held(tmp_path):
        assert state(tmp_path).text == "starting, no step is logged yet"
