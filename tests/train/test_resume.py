"""A run that is killed and resumed gives the same losses to the last bit as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs/debug_clip.toml"
STEPS = 24


def command(run_dir: Path, *words: str) -> list[str]:
    """The command line of a run whose every step is logged and every third one saved."""
    options = ["--train.steps", str(STEPS), "--train.checkpoint_every", "3"]
    return [
        *(sys.executable, "-m", "mmtrain", "train", str(RECIPE), "--run-dir", str(run_dir)),
        *(*options, *words),
    ]


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
    [(2, 1), *(pytest.param(workers, 3, marks=pytest.mark.slow) for workers in (0, 2))],
)
def test_killed_run_resumes_to_the_same_losses(
    tmp_path: Path, workers: int, num_kills: int
) -> None:
    """SIGKILL at random steps; every loss, before and after each kill, is the same."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(command(straight), check=True, capture_output=True, cwd=ROOT, env=environment())
    expected = losses(straight)
    assert sorted(expected) == list(range(1, STEPS + 1))

    draw = random.Random(workers)
    kills = sorted(draw.sample(range(1, STEPS - 1), num_kills))
    option = ("--data.workers", str(workers))
    for step in kills:
        run_until(killed, step, *option, *(["--resume"] if step > kills[0] else []))
        seen = losses(killed)
        assert seen == {step: expected[step] for step in seen}
    subprocess.run(command(killed, *option, "--resume"), check=True, cwd=ROOT, env=environment())
    assert losses(killed) == expected
    exported = [(run / "export/model.safetensors").read_bytes() for run in (straight, killed)]
    assert exported[0] == exported[1]


def test_sigterm_saves_and_resume_goes_on(tmp_path: Path) -> None:
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
    again = subprocess.run(
        command(run_dir, "--train.steps", str(step + 2), "--resume-with-changes"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        check=True,
    )
    assert f"step-{step:08d}" in again.stderr
    assert sorted(losses(run_dir)) == list(range(1, step + 3))
