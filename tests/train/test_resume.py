"""A run that is killed and resumed gives the same losses to the last bit as one that was not."""

import json
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.ranks import start_job

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs/debug_clip.toml"
STEPS = 24


def start(run_dir: Path, *words: str) -> BaseProcess:
    """A run whose every step is logged and every third one saved; what it says is beside it."""
    options = ["--train.steps", str(STEPS), "--train.checkpoint_every", "3"]
    with (run_dir.parent / "output.txt").open("a") as output:
        return start_job(
            ["train", str(RECIPE), "--run-dir", str(run_dir), *options, *words], output=output
        )


def finish(run_dir: Path, *words: str) -> None:
    """Start or resume a run, to its end."""
    job = start(run_dir, *words)
    job.join()
    assert job.exitcode == 0, said(run_dir)


def said(run_dir: Path) -> str:
    """By all runs beside this one."""
    return (run_dir.parent / "output.txt").read_text()


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
    job = start(run_dir, *words)
    deadline = time.monotonic() + 120
    while last_step(run_dir) < step and job.is_alive():
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.002)
    os.killpg(job.pid, signal.SIGKILL)
    job.join()
    assert job.exitcode == -signal.SIGKILL, f"ended by itself before the kill:\n{said(run_dir)}"


@pytest.mark.parametrize(
    ("workers", "num_kills"),
    [(2, 1), *(pytest.param(workers, 3, marks=pytest.mark.slow) for workers in (0, 2))],
)
def test_killed_run_resumes_to_the_same_losses(
    tmp_path: Path, workers: int, num_kills: int
) -> None:
    """SIGKILL at random steps; every loss, before and after each kill, is the same."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(straight)
    expected = losses(straight)
    assert sorted(expected) == list(range(1, STEPS + 1))

    draw = random.Random(workers)
    kills = sorted(draw.sample(range(1, STEPS - 1), num_kills))
    option = ("--data.workers", str(workers))
    for step in kills:
        run_until(killed, step, *option, *(["--resume"] if step > kills[0] else []))
        seen = losses(killed)
        assert seen == {step: expected[step] for step in seen}
    finish(killed, *option, "--resume")
    assert losses(killed) == expected
    exported = [(run / "export/model.safetensors").read_bytes() for run in (straight, killed)]
    assert exported[0] == exported[1]


def test_sigterm_saves_and_resume_goes_on(tmp_path: Path) -> None:
    """A scheduler's signal: the step is finished and saved, the exit code says `again`."""
    run_dir = tmp_path / "run"
    job = start(run_dir, "--train.checkpoint_every", "1000", "--train.steps", "2000")
    deadline = time.monotonic() + 120
    while last_step(run_dir) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGTERM)
    job.join(60)
    assert job.exitcode == 75, said(run_dir)
    step = last_step(run_dir)
    assert f"stopped by SIGTERM at step {step}, saved" in said(run_dir)
    assert (run_dir / f"checkpoints/step-{step:08d}/manifest.json").exists()
    (run_dir.parent / "output.txt").unlink()
    finish(run_dir, "--train.steps", str(step + 2), "--resume-with-changes")
    assert f"step-{step:08d}" in said(run_dir)
    assert sorted(losses(run_dir)) == list(range(1, step + 3))
