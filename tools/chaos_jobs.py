"""Rows of chaos.py about running jobs: killed whole, told to stop, or short of a rank."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import mmtrain.run  # noqa: F401  imported here once, so that a forked rank starts at once
from mmtrain.cli import main
from mmtrain.errors import ExitStatus

_ROOT = Path(__file__).parents[1]
_RECIPE = str(_ROOT / "configs/debug_clip.toml")
_DATA = ("--data.train", str(_ROOT / "mmtrain/demo/debug/train.tar"))
_SAVE = ("--train.checkpoint_every", "2", "--train.keep_checkpoints", "2")
_PATIENCE = 600.0
"""Seconds without a step after which a row gives up."""


def _words(run: Path, steps: int) -> list[str]:
    run_words = ["--run-dir", str(run), "--train.steps", str(steps), "--resume"]
    return ["train", _RECIPE, *_DATA, *_SAVE, *run_words]


def free_port() -> int:
    """Below those that systems give out by themselves: nobody takes it before the ranks do."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Job:
    """Two forked ranks that train, as a scheduler would start them, without torchrun."""

    def __init__(self, run: Path, steps: int, *words: str) -> None:
        port = free_port()
        self.ranks = [self._fork(rank, port, [*_words(run, steps), *words]) for rank in range(2)]

    def _fork(self, rank: int, port: int, words: list[str]) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            run = Path(words[words.index("--run-dir") + 1])
            log = os.open(run.parent / f"rank-{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = main(words)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def send(self, number: signal.Signals) -> None:
        """A signal to both."""
        for process in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def wait(self) -> list[int]:
        """Both exit codes."""
        return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in self.ranks]


def _losses(run: Path) -> dict[int, str]:
    """Loss of every logged step as a hex float; a line that a kill cut short is left out."""
    file, found = run / "metrics.jsonl", {}
    for line in file.read_text().splitlines(keepends=True) if file.exists() else ():
        if line.endswith("\n"):
            record = json.loads(line)
            found[record["step"]] = float(record["loss"]).hex()
    return found


def _last_step(run: Path) -> int:
    return max(_losses(run), default=0)


def _reaches(run: Path, step: int) -> bool:
    return _wait_until(lambda: _last_step(run) >= step)


def _wait_until(is_true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return is_true()


def _straight(folder: Path, steps: int) -> dict[int, str]:
    """The losses of a job that nobody disturbs."""
    assert Job(folder / "straight", steps).wait() == [0, 0], (folder / "rank-0.txt").read_text()
    losses = _losses(folder / "straight")
    assert sorted(losses) == list(range(1, steps + 1))
    return losses


def kill_jobs(folder: Path, times: int) -> tuple[bool, str]:
    """SIGKILL of both ranks, some steps after they went on or while they start."""
    draw, steps, run = random.Random(1), 6 * times + 4, folder / "killed"
    expected, wrong = _straight(folder, steps), 0
    for number in range(times):
        before = _last_step(run)
        job = Job(run, steps, "--train.async_checkpoint", "true" if number % 2 else "false")
        if number % 5 == 4:
            time.sleep(2 * draw.random())
        elif not _reaches(run, before + draw.randint(1, 5)):
            job.send(signal.SIGKILL)
            job.wait()
            return False, f"kill {number}: the job did not get on"
        time.sleep(0.2 * draw.random())
        job.send(signal.SIGKILL)
        job.wait()
        seen = _losses(run)
        wrong += seen != {step: expected[step] for step in seen}
    codes = Job(run, steps).wait()
    same = _losses(run) == expected
    return codes == [0, 0] and same and wrong == 0, (
        f"{times} kills, {steps} of {steps} losses the same"
        if same
        else f"{wrong} times another loss, exit codes {codes}"
    )


def stop_jobs(folder: Path, times: int) -> tuple[bool, str]:
    """SIGTERM to both ranks: they finish the step, save it and say so by their exit code."""
    draw, steps, run = random.Random(2), 6 * times + 4, folder / "stopped"
    expected, lost = _straight(folder, steps), 0
    for number in range(times):
        before = _last_step(run)
        job = Job(run, steps)
        got_on = _reaches(run, before + draw.randint(1, 4))
        time.sleep(0.2 * draw.random())
        job.send(signal.SIGTERM)
        codes = job.wait()
        if not got_on or codes != [ExitStatus.STOPPED] * 2:
            return False, f"SIGTERM {number}: exit codes {codes}"
        last = _last_step(run)
        lost += not (run / f"checkpoints/step-{last:08d}/manifest.json").exists()
    codes, seen = Job(run, steps).wait(), _losses(run)
    if codes != [0, 0]:
        log = (folder / "rank-0.txt").read_text().splitlines()
        return False, f"the last start: exit codes {codes}: {' '.join(log[-3:])}"
    other = sorted(step for step in expected if seen.get(step) != expected[step])
    return not other and lost == 0, (
        f"{lost} steps lost, exit status {ExitStatus.STOPPED} each time, "
        f"{f'other losses at steps {other}' if other else 'every loss the same'}"
    )


class _Agent:
    """torchrun with two workers, and when it said that one had failed."""

    def __init__(self, run: Path, steps: int, restarts: int) -> None:
        launch = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
        words = ["-m", "torch.distributed.run", *launch, "-m", "mmtrain", *_words(run, steps)]
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=_ROOT,
            env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.noticed: list[float] = []
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "failed (exitcode: -9)" in line:
                self.noticed.append(time.monotonic())


def _worker(run: Path, rank: int) -> int:
    """The process of a rank, from its heartbeat; 0 before there is one."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((run / f"heartbeats/rank-{rank:05d}.json").read_bytes())["process"]
    return 0


def kill_ranks(folder: Path, times: int) -> tuple[bool, str]:
    """SIGKILL of one rank again and again; torchrun starts both anew and the run resumes."""
    draw, steps, run = random.Random(3), 6 * times + 4, folder / "short"
    expected = _straight(folder, steps)
    agent, delays, old = _Agent(run, steps, times), [], {0}
    try:
        for number in range(times):
            goal = _last_step(run) + draw.randint(1, 3)
            rank = draw.randrange(2)
            ready = _wait_until(
                lambda goal=goal, rank=rank, old=old: (
                    _last_step(run) >= goal and _worker(run, rank) not in old
                )
            )
            if not ready or agent.process.poll() is not None:
                tail = "".join(agent.lines[-5:]).replace("\n", " ")
                return False, f"kill {number}: not recovered: {tail}"
            old = {0, _worker(run, 0), _worker(run, 1)}
            killed = time.monotonic()
            os.kill(_worker(run, rank), signal.SIGKILL)
            if not _wait_until(lambda seen=number: len(agent.noticed) > seen):
                return False, f"kill {number}: torchrun did not notice"
            delays.append(agent.noticed[-1] - killed)
        code = agent.process.wait(_PATIENCE)
    finally:
        agent.process.kill()
        agent.process.wait()
    same = _losses(run) == expected
    return code == 0 and same and max(delays) <= 5, (
        f"seen within {max(delays):.1f} s, {times} of {times} recovered, "
        f"{'every loss the same' if same else 'other losses'}"
    )
