"""A rank that hangs is named; one that is only busy or slow to start is not."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.flight_recorder.components.loader import read_dump

from mmtrain.errors import ExitStatus
from mmtrain.train.watchdog import Watchdog
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]


class Pair:
    """Two watchdogs of one process that stand for two ranks; `left` has the exit codes."""

    def __init__(self, folder: Path, *, seconds: float) -> None:
        self.left: dict[int, int] = {}
        self.gone = threading.Event()
        """Rank 0 has left, which is the one that speaks."""
        self.dogs = [
            Watchdog(folder, seconds=seconds, rank=rank, world_size=2, leave=self._leave(rank))
            for rank in range(2)
        ]

    def _leave(self, rank: int):
        def leave(code: int) -> None:
            self.left[rank] = code
            if rank == 0:
                self.gone.set()
            self.dogs[rank]._stop.set()

        return leave


def test_a_rank_that_lives_and_does_not_get_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rank 0 finished a step more than rank 1: rank 1 is named, with the line it is at."""
    pair = Pair(tmp_path, seconds=0.6)
    with pair.dogs[0], pair.dogs[1]:
        pair.dogs[0].beat(7)
        pair.dogs[1].beat(7)
        pair.dogs[0].beat(8)
        assert pair.gone.wait(30)
    assert pair.left[0] == ExitStatus.HUNG
    errors = capfd.readouterr().err
    assert "rank 1 (host" in errors and "at step 7 in no line of mmtrain" in errors
    assert list((tmp_path / "heartbeats").glob("rank-0000?.stacks.txt"))


def test_busy_is_not_hung(tmp_path: Path) -> None:
    """While a rank evaluates nobody is named, nor before the first step."""
    pair = Pair(tmp_path, seconds=0.3)
    with pair.dogs[0], pair.dogs[1]:
        assert not pair.gone.wait(0.6)
        for dog in pair.dogs:
            dog.beat(1)
        with pair.dogs[1].busy("evaluating"):
            assert not pair.gone.wait(0.9)
        assert pair.gone.wait(30)


@pytest.mark.parametrize("work", ["evaluating", ""])
def test_a_process_that_stopped(
    tmp_path: Path, work: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Even while busy: its heart does not beat. Else too, not taken for one that lives."""
    pair = Pair(tmp_path, seconds=0.6)
    with pair.dogs[0], pair.dogs[1]:
        for dog in pair.dogs:
            dog.beat(3)
        pair.dogs[1]._stop.set()
        with pair.dogs[0].busy(work):
            assert pair.gone.wait(30)
    assert pair.left == {0: ExitStatus.HUNG}
    assert "rank 1 (host" in (errors := capfd.readouterr().err) and "has not answered" in errors


def test_off_writes_nothing(tmp_path: Path) -> None:
    """None, or a single process: no thread, no files."""
    for seconds, world_size in ((None, 2), (1.0, 1)):
        with Watchdog(tmp_path, seconds=seconds, rank=0, world_size=world_size) as dog:
            dog.beat(1)
    assert not list(tmp_path.iterdir())


def wait_alone(rank: int, folder: str) -> None:
    """Rank 1 leaves out a sum that rank 0 waits in, after one that both took."""
    with Watchdog(Path(folder), seconds=1.0, rank=rank, world_size=2, leave=lambda _: None) as dog:
        ones = torch.ones(3, 5)
        dist.all_reduce(ones)
        dog.beat(4)
        if rank == 0:
            dog.beat(5)
            dist.all_reduce(ones)
        else:
            dog._stop.set()
            while not (Path(folder) / "heartbeats/collectives-0").exists():
                time.sleep(0.1)
            dist.all_reduce(ones)


@pytest.mark.slow
def test_the_collective_that_waits_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With its size and number; what torchfrtrace reads of all of them lies beside."""
    run_ranks(wait_alone, 2, str(tmp_path))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "mmtrain: error" in line]
    assert "rank 1 (host" in line and "has not answered" in line
    # Behind the two of the watchdog's start, and the sum that both took.
    assert "rank 0 waits in gloo:all_reduce of 3x5 (number 4 of group default_pg)" in line
    assert f"torchfrtrace -p collectives- {tmp_path / 'heartbeats'}" in line
    dump = read_dump("collectives-", str(tmp_path / "heartbeats/collectives-0"))
    assert dump["rank"] == 0
    assert [one["retired"] for one in dump["entries"]] == [True, True, True, False]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stopped_rank_of_a_job_is_named(tmp_path: Path) -> None:
    """SIGSTOP of one of two ranks under torchrun: the other says which and where, and ends."""
    run = tmp_path / "run"
    words = ("--train.steps", "5000", "--train.hang_minutes", "0.25", "--run-dir", str(run))
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    job = subprocess.Popen(
        [sys.executable, *launch, "-m", "mmtrain", "train", "configs/debug_clip.toml", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline, victim = time.monotonic() + 400, None
    try:
        while victim is None and time.monotonic() < deadline and job.poll() is None:
            time.sleep(0.2)
            beat = run / "heartbeats/rank-00001.json"
            if beat.exists() and (run / "metrics.jsonl").exists():
                text = beat.read_text()
                if '"progress": 0' not in text:
                    victim = int(text.partition('"process": ')[2].strip("}\n "))
        assert victim is not None
        os.kill(victim, signal.SIGSTOP)
        _, errors = job.communicate(timeout=400)
    finally:
        if victim is not None and job.poll() is None:
            os.kill(victim, signal.SIGKILL)
        job.kill()
        job.wait()
    assert job.returncode != 0
    (line,) = [line for line in errors.splitlines() if line.startswith("mmtrain: error:")]
    assert "rank 1 (host" in line and f"process {victim}, at step" in line, line
    assert " in mmtrain/" in line and "has not answered" in line
    assert f"exitcode  : {ExitStatus.HUNG:d}" in errors
