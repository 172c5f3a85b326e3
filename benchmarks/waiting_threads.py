"""How a step's threads wait for each other on a CPU: spinning as libgomp comes, or as mmtrain asks.

Between two operations the threads of OpenMP wait. As libgomp comes they spin for milliseconds,
which saves a wake-up where a core is theirs alone; beside other work they take the core from the
thread that they wait for. Steps of the demo with a thread for each core, by turns, alone and beside
one busy process for each core: samples a second by the clock, the processor time of the process,
and the last loss, which must be the same.

    python benchmarks/waiting_threads.py --out benchmarks/results/waiting_threads_cpu.md
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine, tell_table

from mmtrain.__main__ import SPINS

AS_IT_COMES = "300000"
"""libgomp's own count where nothing is asked for and there is a core for each thread."""
WAYS = {"as libgomp comes": AS_IT_COMES, "mmtrain": SPINS, "asleep at once": "0"}


@dataclass(frozen=True)
class Steps:
    """What some steps took."""

    samples_per_second: float
    cpu_seconds: float
    loss: float


def take_steps(folder: Path, spins: str, *, steps: int, threads: int) -> Steps:
    """A training of its own process."""
    words = ["--train.epochs", "none", "--train.steps", str(steps), "--train.log_every", "1"]
    words += ["--eval.zero_shot", "[]", "--eval.retrieval", "[]"]
    demo = ["demo", "--fresh", "--out", str(folder / "run")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "mmtrain", *demo, *words],
        check=True,
        capture_output=True,
        cwd=folder,
        env=os.environ | {"GOMP_SPINCOUNT": spins, "OMP_NUM_THREADS": str(threads)},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = (folder / "run/metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return Steps(
        samples_per_second=statistics.median(row["samples_per_second"] for row in rows[2:]),
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        loss=rows[-1]["loss"],
    )


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other work meanwhile."""
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def rows(args: argparse.Namespace) -> Iterator[str]:
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as made:
        for title, processes in (("alone", 0), (f"beside {cores} busy processes", cores)):
            found: dict[str, list[Steps]] = {way: [] for way in WAYS}
            with busy(processes):
                for _ in range(args.rounds):
                    for way, spins in WAYS.items():
                        found[way].append(
                            take_steps(Path(made), spins, steps=args.steps, threads=cores)
                        )
            speeds = {
                way: statistics.median(one.samples_per_second for one in of)
                for way, of in found.items()
            }
            first = speeds["as libgomp comes"]
            for way, of in found.items():
                cpu = statistics.median(one.cpu_seconds for one in of)
                losses = {one.loss for each in found.values() for one in each}
                same = "the same" if len(losses) == 1 else "NOT the same"
                yield (
                    f"| {title} | {way} | {speeds[way]:.0f} | **{speeds[way] / first:.2f}x** | "
                    f"{cpu:.1f} s | {same} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="of each training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the table here too")
    args = parser.parse_args()
    table = [
        "# How threads wait for each other on a CPU",
        "",
        f"{describe_machine()}; {args.steps} steps of the demo, a thread for each core, medians of "
        f"{args.rounds} rounds by turns; `python benchmarks/waiting_threads.py`.",
        "",
        "| beside | threads wait | samples/s | ratio | processor time | losses |",
        "|---|---|---|---|---|---|",
        *rows(args),
    ]
    tell_table(table, args.out)


if __name__ == "__main__":
    main()
