"""How long a command takes to answer, beside what importing torch alone takes.

Whole processes, by turns, each with one thread: the processor time (user and system) of a process
and its children. A turn before the first compiles the modules and is not counted. The aims: 0.3 s
for a command that needs no torch, torch's own import and 0.7 s for one that does.

    python benchmarks/start_up.py --out benchmarks/results/start_up_cpu.md
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine, tell_table

ROOT = Path(__file__).parents[1]
RECIPE = "configs/debug_clip.toml"
DRAWINGS = "mmtrain/demo/debug"
ZERO_SHOT = (
    f"eval zero-shot --model {{made}}/run --data {DRAWINGS}/train.tar "
    f"--classes {DRAWINGS}/classes.json"
)
"""Of 64 drawings, by a run of two steps."""
TORCH = "import torch"
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
} | {"OMP_NUM_THREADS": "1"}
"""Modules are compiled once, as where mmtrain is installed."""
ALONE, MORE = 0.3, 0.7
"""The aims, in seconds: without torch, and beyond torch's own import."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Words after `mmtrain`, the status that they end with, and whether they need torch."""

    words: str
    status: int = 0
    torch: bool = False


COMMANDS = (
    Command(words=""),
    Command(words="--help"),
    Command(words="train --help"),
    Command(words="trian", status=2),
    Command(words="recipes"),
    Command(words="models"),
    Command(words="completion bash"),
    Command(words="train --help optim", torch=True),
    Command(words=f"train {RECIPE} --train.step 3", status=2, torch=True),
    Command(words="doctor", torch=True),
    Command(words="summary ViT-B-32", torch=True),
    Command(words=f"{ZERO_SHOT} --out {{made}}/third.json", torch=True),
    Command(words="compare {made}/first.json {made}/second.json"),
)


def seconds(words: Sequence[str], status: int) -> float:
    """Processor time of a process in the clone that must end with `status`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    assert done.returncode == status, (words, done.returncode, done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_results(folder: Path) -> None:
    """Two evaluations of a run of two steps, to compare."""
    run = str(folder / "run")
    seconds(["-m", "mmtrain", "train", RECIPE, "--run-dir", run, "--train.steps", "2"], 0)
    for name in ("first", "second"):
        words = f"{ZERO_SHOT} --out {{made}}/{name}.json".format(made=folder)
        seconds(["-m", "mmtrain", *words.split()], 0)


def rows(turns: int) -> Iterator[str]:
    """A line for torch alone and for each command."""
    torch_alone: list[float] = []
    taken: dict[Command, list[float]] = {command: [] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as made:
        make_results(Path(made))
        for _ in range(1 + turns):
            torch_alone.append(seconds(["-c", TORCH], 0))
            for command, times in taken.items():
                words = command.words.format(made=made).split()
                times.append(seconds(["-m", "mmtrain", *words], command.status))
    torch_median = statistics.median(torch_alone[1:])
    yield f"| `{TORCH}` | {torch_median:.2f} s | 1x | |"
    for command, times in taken.items():
        aim = torch_median + MORE if command.torch else ALONE
        words = f"mmtrain {command.words}".strip().replace("{made}/", "")
        median = statistics.median(times[1:])
        yield f"| `{words}` | {median:.2f} s | {median / torch_median:.2f}x | {aim:.2f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the table here too")
    args = parser.parse_args()
    table = [
        "# How long a command takes to answer",
        "",
        f"{describe_machine()}; processor time, one thread, medians of {args.turns} turns; "
        "`python benchmarks/start_up.py`.",
        "",
        "| command | takes | of torch's import | aim |",
        "|---|---|---|---|",
        *rows(args.turns),
    ]
    tell_table(table, args.out)


if __name__ == "__main__":
    main()
