"""Full disks, closed pipes, ctrl-C and too little memory: one line and a status, no traceback."""

import contextlib
import importlib.util
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmtrain import errors
from mmtrain.cli import main
from mmtrain.cli.endings import end_well
from tests.mistakes import mistake

ROOT = Path(__file__).parents[2]
RECIPE = "configs/debug_clip.toml"
SHARD = "mmtrain/demo/debug/train.tar"
CLASSES = "mmtrain/demo/debug/classes.json"


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, whoever writes it: the system refuses, as on a full
    disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", RECIPE, "--run-dir", str(run), "--train.steps", "2"]) == 0
    return run


@pytest.mark.parametrize("size", [0, 3000])
@pytest.mark.parametrize(
    "words",
    [
        ("train", RECIPE, "--run-dir", "{out}", "--train.steps", "2"),
        ("export", "{run}", "--out", "{out}"),
        ("export", "{run}", "--out", "{out}", "--format", "hf"),
        ("convert", "{run}", "{out}", "--format", "open-clip"),
        ("checkpoint", "convert", "{run}", "--out", "{out}"),
        ("checkpoint", "convert", "{run}", "--out", "{out}", "--format", "mmtrain"),
        ("embed", "--model", "{run}", "--data", SHARD, "--out", "{out}"),
        ("data", "make", SHARD, "--out", "{out}"),
        ("report", "{run}", "--out", "{out}.html"),
        ("summary", RECIPE, "--graph", "{out}.svg"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_full_disk(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    size: int,
) -> None:
    """The line names the file, or the folder that it should have gone into."""
    given = [word.format(run=trained, out=tmp_path / "out") for word in words]
    with full_disk(size):
        assert "out" in (line := mistake(capsys, *given)) and str(tmp_path) in line
    assert "File too large" in line


def test_a_full_disk_under_an_evaluation(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    words = ("--data", SHARD, "--classes", CLASSES, "--out", str(out))
    with full_disk(0):
        line = mistake(capsys, "eval", "zero-shot", "--model", str(trained), *words)
    assert f"out = {out} cannot be written" in line


def load_tool(name: str):
    """A program of tools/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("make_shapes_vqa", ("--out", "{out}", "--train", "4")),
        ("train_tokenizer", (SHARD, "--out", "{out}", "--vocab-size", "300")),
    ],
)
def test_a_full_disk_under_a_tool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: str, words: tuple[str, ...]
) -> None:
    given = [word.format(out=tmp_path / "out") for word in words]
    with full_disk(0):
        assert load_tool(tool).main(given) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith(f"{tool}: error: ") and str(tmp_path) in told[-1]


@pytest.mark.parametrize("tool", ["make_shapes_vqa", "train_tokenizer"])
def test_ctrl_c_in_a_tool(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tool: str
) -> None:
    module = load_tool(tool)
    monkeypatch.setattr(module, "_parser", lambda: signal.raise_signal(signal.SIGINT))
    assert module.main([]) == 130
    assert capsys.readouterr().err == f"{tool}: interrupted\n"


PRINTS = "print('x' * 100_000)"
MISTAKE = "(_ for _ in ()).throw(UsageError('no'))"
STEPS = "print('step', file=sys.stderr, flush=True)"
PROGRAM = """
import sys
from mmtrain.cli.endings import end_well
from mmtrain.errors import UsageError
sys.exit(end_well(lambda: {what}, name="program"))
"""


@pytest.mark.parametrize(
    ("program", "closed"),
    [
        (["-m", "mmtrain", "--help"], "out"),
        (["tools/make_shapes_vqa.py", "--help"], "out"),
        (["-c", PROGRAM.format(what=PRINTS)], "out"),
        (["-c", PROGRAM.format(what=MISTAKE)], "both"),
        (["-c", PROGRAM.format(what=STEPS)], "both"),
    ],
    ids=["help", "help of a tool", "prints", "mistake", "steps"],
)
def test_whoever_reads_the_output_has_gone(program: list[str], closed: str) -> None:
    """Status 141, and neither a traceback nor the interpreter's own complaint at its end."""
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does, when it has seen enough
    errors = writer if closed == "both" else subprocess.PIPE
    try:
        done = subprocess.run([sys.executable, *program], cwd=ROOT, stdout=writer, stderr=errors)
    finally:
        os.close(writer)
    # argparse writes its help without looking whether it arrives.
    assert done.returncode == (0 if "--help" in program else 141)
    assert not done.stderr


def test_a_full_disk_behind_the_output() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", PROGRAM.format(what=PRINTS)]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    told = "No space left on device; free some space, or write elsewhere"
    assert done.stderr == f"program: error: the output: {told}\n"


@pytest.mark.parametrize("wanted", ["torch", "python"])
def test_too_little_memory(capsys: pytest.CaptureFixture[str], wanted: str) -> None:
    import torch

    def run() -> None:
        if wanted == "torch":
            torch.empty(2**60, dtype=torch.uint8)
        bytearray(2**62)

    assert end_well(run, name="mmtrain") == 2
    line = capsys.readouterr().err
    assert line.startswith("mmtrain: error: ") and line.count("\n") == 1
    assert "lower train.batch_size" in line


_LEFT = """
import atexit, os, sys
import mmtrain.__main__ as program

class Left:
    def __del__(self, abort=os.abort):
        abort()

def main():
    global left
    left = Left()  # as a thread's tensor, it is let go of when the interpreter is taken apart
    sys.modules["somebody"] = left
    atexit.register(lambda: print("a mirror's own end"))
    print("done", end=" ")
    STATEMENT

program.main = main
sys.exit(program.run())
"""


@pytest.mark.parametrize(
    ("ranks", "statement", "status"),
    [("2", "return 0", 0), ("2", "return 75", 75), ("1", "return 0", 0), ("2", "1 / 0", 1)],
)
def test_a_rank_ends_without_taking_the_interpreter_apart(
    ranks: str, statement: str, status: int
) -> None:
    """What is left over then would abort the process after all was done. A lone process, and an
    exception that nobody caught, end as Python has it, and what is in cycles stays (a module is).
    What others registered is called."""
    done = subprocess.run(
        [sys.executable, "-c", _LEFT.replace("STATEMENT", statement)],
        env=os.environ | {"WORLD_SIZE": ranks},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert done.stdout == "done a mirror's own end\n"
    assert ("ZeroDivisionError" in done.stderr) == (statement == "1 / 0")


def test_a_library_that_ends_the_process_leaves_where_it_was() -> None:
    """As a heap that is found damaged does."""
    done = subprocess.run(
        [sys.executable, "-c", _LEFT.replace("STATEMENT", "os.abort()")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr and "in main" in done.stderr


@pytest.mark.parametrize("speaks", [True, False])
def test_another_rank_lets_the_first_one_speak(
    speaks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun ends rank 0, which prints the line, as soon as another one has ended."""
    files = [tmp_path / f"attempt_0/{rank}/error.json" for rank in range(2)]
    for file in files:
        file.parent.mkdir(parents=True)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if speaks and len(waited) == 3:
            files[0].write_text("{}")

    monkeypatch.setattr(errors.time, "sleep", sleep)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(files[1]))
    errors.let_rank_0_speak(seconds=0.02)
    assert len(waited) == 3 if speaks else len(waited) >= 3
    waited.clear()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(files[0]))
    errors.let_rank_0_speak()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "mmtrain-7.error.json"))  # SLURM's
    errors.let_rank_0_speak()
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    errors.let_rank_0_speak()
    assert not waited


@pytest.mark.parametrize("launched", [False, True])
@pytest.mark.parametrize("rank", ["0", "1", "7"])
def test_what_a_rank_alone_meets_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str,
    launched: bool,
) -> None:
    """By rank 0 itself, by the launcher that prints what another rank leaves, or by that rank."""

    def fail() -> None:
        raise errors.UsageError("no such shard")

    left = tmp_path / "error.json"
    monkeypatch.setenv("RANK", rank)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(left))
    assert end_well(fail, name="mmtrain") == 2
    said = capsys.readouterr().err
    if rank == "0":
        assert said == "mmtrain: error: no such shard\n"
    else:
        assert said == ("" if launched else f"mmtrain: rank {rank}: error: no such shard\n")
    assert left.exists() is launched
