"""A run folder has one writer, and a start that came to nothing is in nobody's way."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mmtrain.checkpoint.checkpoint import save_checkpoint
from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.train import run_lock
from mmtrain.train.run_folder import refuse_foreign
from mmtrain.train.run_lock import LOCK_FILE, RunLock

RECIPE = "configs/debug_clip.toml"
WORDS = ("--train.steps", "2", "--train.log_every", "1")
# A process that holds the lock of argv[1], with a child as a data worker is one.
HOLDER = """
import os, sys, time
from pathlib import Path
from mmtrain.train.run_lock import RunLock
with RunLock(Path(sys.argv[1]), named="x", say=print):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(100)
"""


def take(folder: Path, said: list[str] | None = None, *, patience: float = 0.0) -> RunLock:
    """The lock as a run takes it."""
    say = [] if said is None else said
    return RunLock(folder, named=f"run.dir = {folder}", say=say.append, patience=patience)


@contextmanager
def held(folder: Path, host: str | None = None) -> Iterator[int]:
    """Another process, seemingly of another host if one is named, writes into the folder."""
    ready, told = os.pipe()
    if (process := os.fork()) == 0:
        with ExitStack() as stack:
            stack.callback(os._exit, 0)
            if host is not None:
                run_lock.socket.gethostname = lambda: host
            stack.enter_context(take(folder))
            os.write(told, b"x")
            signal.pause()
    os.read(ready, 1)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(ready)
        os.close(told)


def test_a_lock_dies_with_its_owner(tmp_path: Path) -> None:
    """Killed, it is free at once, although a child of the owner and the file live on."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(UsageError, match=f"process {process.pid} on .*, since 20") as caught:
            take(tmp_path).__enter__()
        assert "\n" not in str(caught.value)
        process.kill()
        process.wait()
        assert (tmp_path / LOCK_FILE).exists()
        with take(tmp_path):
            holder = json.loads((tmp_path / LOCK_FILE).read_bytes())
            assert holder["process"] == os.getpid()
        assert not (tmp_path / LOCK_FILE).exists()
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_holder_on_another_machine_is_waited_for(tmp_path: Path) -> None:
    """Said at once; the lock of a machine that is gone ends by itself."""
    said: list[str] = []
    with held(tmp_path, "node7") as process:
        with pytest.raises(UsageError, match="on node7"):
            take(tmp_path).__enter__()
        lock = RunLock(
            tmp_path,
            named="x",
            say=lambda line: (said.append(line), os.kill(process, signal.SIGKILL)),
            patience=30,
        )
        with lock:
            assert len(said) == 1 and "node7" in said[0] and "waiting up to 30 s" in said[0]


def test_a_lock_that_was_removed_is_nobody_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever opened the file before its owner removed it must not take it for the lock."""
    real, path = fcntl.lockf, tmp_path / LOCK_FILE

    def late(descriptor: int, how: int) -> None:
        if not path.with_name("once").exists():
            path.with_name("once").touch()
            path.unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "lockf", late)
    with take(tmp_path), held(tmp_path / "other"):
        assert json.loads(path.read_bytes())["process"] == os.getpid()


def test_a_folder_that_its_maker_removes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which a start does that came to nothing, as another one begins."""
    folder, opened, removed = tmp_path / "run", os.open, []

    def late(path: Path, *more: int) -> int:
        if path == folder / LOCK_FILE and not removed:
            removed.append(folder.rmdir())
        return opened(path, *more)

    monkeypatch.setattr(os, "open", late)
    with take(folder):
        assert removed and (folder / LOCK_FILE).exists()
    assert not folder.exists()


def test_a_folder_that_another_process_takes_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the end of who made it, and its removal."""
    folder, remove = tmp_path / "run", Path.rmdir

    def late(path: Path) -> None:
        (folder / LOCK_FILE).touch()
        remove(path)

    monkeypatch.setattr(Path, "rmdir", late)
    with take(folder):
        pass
    assert [path.name for path in folder.iterdir()] == [LOCK_FILE]


def test_a_holder_is_named_that_has_not_yet_written_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, that of who has it, and none of a wait for a machine that nobody knows; one that
    gave it up meanwhile is no holder."""
    said: list[str] = []
    with held(tmp_path) as process:
        read, told = Path.read_bytes, [b"", b"{"]
        monkeypatch.setattr(Path, "read_bytes", lambda p: told.pop() if told else read(p))
        with pytest.raises(UsageError, match=f"process {process} on"):
            take(tmp_path, said, patience=30).__enter__()
        assert not said and not told

    def gone(path: Path) -> bytes:
        os.kill(process, signal.SIGKILL)
        path.unlink()
        return read(path)

    with held(tmp_path / "other") as process:
        monkeypatch.setattr(Path, "read_bytes", gone)
        with take(tmp_path / "other", said):
            assert not said


def test_no_locks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre without its option, some FUSEs: one line, and the run goes on."""
    for code in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        said: list[str] = []

        def refuse(*_: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "lockf", refuse)
        with take(tmp_path, said):
            pass
        assert len(said) == 1 and "has no locks" in said[0]


@pytest.mark.parametrize("words", [(), ("--resume",)], ids=str)
def test_a_second_training_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """One line, before anything is built; nothing in the folder changes."""
    with held(tmp_path) as process:
        before = sorted(tmp_path.iterdir())
        assert main(["train", RECIPE, "--run-dir", str(tmp_path), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--run-dir = {tmp_path}" in line and f"process {process}" in line
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/step-00000001"])
def test_a_live_run_is_not_pruned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    """By whatever name its checkpoints are called; of a run that is still, they are."""
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoints", step=step, tensors={}, state={}, keep=9)
    command = ["checkpoint", "prune", str(tmp_path / part), "--keep", "1"]
    with held(tmp_path) as process:
        assert main(command) == 2
        assert f"process {process}" in capsys.readouterr().err
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert main(command) == 0


def no_data(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ["--data.train", "nowhere.tar"]


def bad_samples(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ["--data.captions", "{ nothing = 1.0 }"]


def no_memory(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("mmtrain.tasks.objective.Objective.step", fail)
    return []


def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mmtrain.train.run_folder.replace_file", fail)
    return []


def interrupt(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmtrain.train.loop.Loop.run", fail)
    return []


@pytest.mark.parametrize(
    ("cause", "resume"),
    [
        *((no_data, False), (bad_samples, False), (bad_samples, True)),
        *((no_memory, False), (full_disk, False), (interrupt, True)),
    ],
)
def test_a_failed_start_is_in_nobody_s_way(
    tmp_path: Path, cause: Callable[[pytest.MonkeyPatch], list[str]], resume: bool
) -> None:
    """Whatever ended it before its first step: the same folder takes the next try, whose files say
    nothing of the first."""
    run = tmp_path / "run"
    command = ["train", RECIPE, "--run-dir", str(run), *WORDS]
    with pytest.MonkeyPatch.context() as patch:
        words = cause(patch)
        with contextlib.suppress(MemoryError):
            assert main([*command, *words]) != 0
    assert run.exists() == (cause in (bad_samples, no_memory, interrupt))
    assert main([*command, *["--resume"] * resume]) == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (run / "bad_samples.jsonl").exists()


@pytest.mark.parametrize("kept", ["checkpoints", "metrics.jsonl", "export"])
def test_steps_are_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: str
) -> None:
    """Any one trace of finished steps is a run."""
    run = tmp_path / "run"
    run.mkdir()
    if kept == "checkpoints":
        save_checkpoint(run / kept, step=3, tensors={}, state={}, keep=1)
    elif kept == "export":
        (run / kept).mkdir()
    else:
        (run / kept).write_text('{"step": 7, "loss": 1.0}\n')
    assert main(["train", RECIPE, "--run-dir", str(run)]) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "holds",
    [
        ("slurm-7.out", "train.log", ".git/x"),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("eval/old.json",), marks=pytest.mark.slow),
    ],
)
def test_a_resume_that_is_refused_leaves_no_copy_of_the_mirror(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], holds: tuple[str, ...]
) -> None:
    """Neither where it was refused before the copy came nor behind it: the next try may be any."""
    mirror, run, other = (tmp_path / name for name in ("mirror", "run", "other"))
    words = (*WORDS, "--run.mirror", str(mirror))
    assert main(["train", RECIPE, "--run-dir", str(run), *words]) == 0
    for name in holds:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text("kept")
    before = {path: path.stat().st_mtime for path in other.rglob("*")}
    for mistake, told in (
        (("--run.seed", "3"), "run.seed is 0 there"),
        (("--optim.lr", "0.5"), "optim.lr"),
        (("--train.steps", "1"), "train.steps = 1, but "),
        (("--data.train", "none.tar"), "none.tar"),
    ):
        words = (*WORDS, "--run.mirror", str(mirror), *mistake, "--resume")
        assert main(["train", RECIPE, "--run-dir", str(other), *words]) == 2
        assert told in capsys.readouterr().err.splitlines()[-1]
        assert {path: path.stat().st_mtime for path in other.rglob("*")} == before
        assert other.exists() == bool(holds)
    words = (*WORDS, "--train.steps", "3", "--resume-with-changes")
    assert (
        main(["train", RECIPE, "--run-dir", str(other), "--run.mirror", str(mirror), *words]) == 0
    )
    assert all((other / name).read_text() == "kept" for name in holds)


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=str)
@pytest.mark.parametrize(
    ("holds", "told"),
    [
        (("photo.jpg",), "(photo.jpg)"),
        (("src/main.py", "notes.txt"), "(notes.txt, src/)"),
        (("a.tar", "b.tar", "c.tar", "d.tar", "e.tar"), "(a.tar, b.tar, c.tar and 2 more)"),
        (("report.html", "thesis.tex"), "(report.html, thesis.tex)"),
        (("checkpoints/mine.pt", "w.pt"), "(w.pt)"),
    ],
)
def test_a_folder_of_other_things_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    holds: tuple[str, ...],
    told: str,
    resume: tuple[str, ...],
) -> None:
    for name in holds:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", RECIPE, "--run-dir", str(tmp_path), *WORDS, *resume]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"= {tmp_path} holds no run, but other things {told}" in line
    assert line.endswith("name a new or an empty folder by --run-dir")
    assert sorted(tmp_path.rglob("*")) == before
    assert all((tmp_path / name).read_text() == "mine" for name in holds)


@pytest.mark.parametrize(
    "holds",
    [
        (),
        (".cache/x", "job.err"),
        ("bad_samples.jsonl", "tokenizer/x"),
        ("run.json", "recipe.toml", "notes.txt"),
    ],
    ids=str,
)
def test_a_folder_that_is_free_or_a_run_s_is_taken(tmp_path: Path, holds: tuple[str, ...]) -> None:
    for name in holds:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    refuse_foreign(tmp_path, resumes=False)


@pytest.mark.parametrize("given", [RECIPE, "recipe.toml"])
def test_a_user_s_recipe_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    """A folder made for an experiment, with the recipe that a user wrote in it."""
    mine = tmp_path / "recipe.toml"
    mine.write_text("# mine\n" + Path(RECIPE).read_text())
    given = str(mine) if given == mine.name else given
    assert main(["train", given, "--run-dir", str(tmp_path), *WORDS]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no run, but other things (recipe.toml)" in line
    assert mine.read_text().startswith("# mine")
    assert sorted(tmp_path.iterdir()) == [mine]
    refuse_foreign(tmp_path, resumes=True)  # what a run's copy brings before it is resumed
