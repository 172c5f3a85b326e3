"""A run that is killed and resumed gives the same losses to the last bit as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmtrain.cli import main

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs/debug_clip.toml"
STEPS = 24


def words_of(run_dir: Path, *words: str) -> list[str]:
    """The words of a run whose every step is logged and every third one saved."""
    options = ["--train.steps", str(STEPS), "--train.checkpoint_every", "3"]
    return ["train", str(RECIPE), "--run-dir", str(run_dir), *options, *words]


def command(run_dir: Path, *words: str) -> list[str]:
    """The same as a process of its own."""
    return [sys.executable, "-m", "mmtrain", *words_of(run_dir, *words)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes have: more of them may sum in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def environment() -> dict[str, str]:
    """One thread, so that neighbours of the test do not slow it down."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def losses(run_dir: Path) -> dict[int, str]:
    """Loss of every logged step as a hex float; a line that a kill cut short is left out."""
    found = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            record = json.loads(line)
            found[record["step"]] = float(record["loss"]).hex()
    return found


def last_step(run_dir: Path) -> int:
    """The last logged step, 0 before the first."""
    return max(losses(run_dir), default=0) if (run_dir / "metrics.jsonl").exists() else 0


def run_until(run_dir: Path, step: int, *words: str) -> None:
    """Start or resume a run and SIGKILL it, workers and all, once `step` is logged."""
    with (run_dir.parent / "output.txt").open("a+") as output:
        process = subprocess.Popen(
            command(run_dir, *words),
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=environment(),
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while last_step(run_dir) < step and process.poll() is None:
            assert time.monotonic() < deadline, "the run does not get on"
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        output.seek(0)
        assert code == -signal.SIGKILL, f"ended by itself before the kill:\n{output.read()}"


@pytest.mark.parametrize(
    ("workers", "num_kills"),
    [(2, 1), *(pytest.param(workers, 5, marks=pytest.mark.slow) for workers in (0, 2))],
)
def test_killed_run_resumes_to_the_same_losses(
    tmp_path: Path, workers: int, num_kills: int
) -> None:
    """SIGKILL at random steps; every loss, before and after each kill, is the same."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    steps = STEPS if num_kills > 1 else STEPS // 2
    length = ("--train.steps", str(steps))
    assert main(words_of(straight, *length)) == 0
    expected = losses(straight)
    assert sorted(expected) == list(range(1, steps + 1))

    draw = random.Random(workers)
    kills = sorted(draw.sample(range(1, steps - 1), num_kills))
    option = ("--data.workers", str(workers), *length)
    for step in kills:
        run_until(killed, step, *option, *(["--resume"] if step > kills[0] else []))
        seen = losses(killed)
        assert seen == {step: expected[step] for step in seen}
    assert main(words_of(killed, *option, "--resume")) == 0
    assert losses(killed) == expected
    exported = [(run / "export/model.safetensors").read_bytes() for run in (straight, killed)]
    assert exported[0] == exported[1]


@pytest.mark.slow  # test_loop.py has a signal to a run in its own process
def test_sigterm_saves_and_resume_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scheduler's signal: the step is finished and saved, the exit code says `again`."""
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(run_dir, "--train.checkpoint_every", "1000", "--train.steps", "2000"),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    deadline = time.monotonic() + 120
    while last_step(run_dir) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    step = last_step(run_dir)
    assert f"stopped by SIGTERM at step {step}, saved" in errors
    assert (run_dir / f"checkpoints/step-{step:08d}/manifest.json").exists()
    words = words_of(run_dir, "--train.steps", str(step + 2), "--resume-with-changes")
    assert main(words) == 0
    assert f"step-{step:08d}" in capsys.readouterr().err
    assert sorted(losses(run_dir)) == list(range(1, step + 3))
