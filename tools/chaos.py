"""Break things on purpose and count what is lost. Prints a table; status 1 if a row falls short.

    python tools/chaos.py                              every fault, in full counts
    python tools/chaos.py --rows flips cuts pickle     some of them
    python tools/chaos.py --scale 0.1 --out chaos.md   a tenth of the counts, kept in a file

With --out each row is appended when it ends, and rows that the file has already are not run again:
what was cut off goes on. Everything happens in a temporary folder, on this machine's CPU.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

# Before torch is imported: forked ranks inherit a process that must not hold threads.
os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks/, which is no package's

from chaos_files import crafted_pickle, cut_files, flip_bits, full_disk, kill_savers
from chaos_jobs import kill_jobs, kill_ranks, stop_jobs

from benchmarks.machine import describe_machine
from mmtrain.cli.endings import end_well
from mmtrain.cli.parser import Parser

_HEAD = "| fault | times | must be seen | was seen | seconds |\n|---|---|---|---|---|\n"
Row = Callable[[Path, int], tuple[bool, str]]
"""Takes an empty folder and how often -> whether it is as it must be, and what was seen."""


ROWS: dict[str, tuple[str, int, str, Row]] = {
    "saves": (
        "SIGKILL at a random moment of saving, half of them in the background",
        200,
        "0 unreadable, 0 acknowledged saves lost",
        kill_savers,
    ),
    "flips": (
        "a random bit of a checkpoint's files flipped",
        100,
        "all seen, the one before used",
        flip_bits,
    ),
    "cuts": (
        "a checkpoint's file cut at a random place",
        50,
        "all seen, the one before used",
        cut_files,
    ),
    "disk": ("the disk is full", 1, "one line says so, the older checkpoint loads", full_disk),
    "pickle": (
        "a crafted pickle in a checkpoint, manifest forged with it",
        2,
        "refused or not read; its code never runs",
        crafted_pickle,
    ),
    "jobs": (
        "SIGKILL of a whole job of 2 ranks (FSDP), then --resume",
        20,
        "every loss the same to the last bit",
        kill_jobs,
    ),
    "sigterms": (
        "SIGTERM to a job of 2 ranks, then --resume",
        20,
        "0 steps lost, every loss the same",
        stop_jobs,
    ),
    "ranks": (
        "SIGKILL of one rank of 2 under torchrun --max-restarts",
        20,
        "seen within 5 s, all recovered, every loss the same",
        kill_ranks,
    ),
}


def main() -> int:
    """The exit code: 1 where a row failed."""
    return end_well(run, name="chaos")


def run() -> int:
    """Run the rows that were asked for."""
    parser = Parser(prog="chaos", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--scale", type=float, default=1.0, help="of every count (1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the table there (.md)")
    arguments = parser.parse_args()
    done = ""
    if arguments.out is not None and arguments.out.exists():
        done = arguments.out.read_text(encoding="utf-8")
    elif arguments.out is not None:
        title = f"# Faults, on purpose\n\n`python tools/chaos.py`, {date.today()}: "
        arguments.out.write_text(f"{title}{describe_machine()}.\n\n{_HEAD}", encoding="utf-8")
    print(_HEAD, end="")
    failed = 0
    for name in arguments.rows:
        what, times, required, row = ROWS[name]
        if f"| {what} |" in done:
            continue
        times = max(1, round(times * arguments.scale))
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            start = time.perf_counter()
            good, seen = row(Path(folder), times)
        seconds = time.perf_counter() - start
        mark = seen if good else f"**FAILED** {seen}"
        line = f"| {what} | {times} | {required} | {mark} | {seconds:.0f} |\n"
        print(line, end="", flush=True)
        failed += not good
        if arguments.out is not None:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
