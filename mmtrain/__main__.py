"""`python -m mmtrain`, the form that torchrun starts, and the script `mmtrain`."""

import atexit
import faulthandler
import gc
import io
import os
import sys
from collections.abc import Sequence

from mmtrain.cli import main

SPINS = "1000"
"""How often a thread of OpenMP looks for its next work before it sleeps, where others compute too:
some microseconds. libgomp lets it spin for milliseconds. That is right where each has a core; else
the threads take the cores from those that they wait for, and a step takes ten times as long
(benchmarks/waiting_threads.py). No bit of a result depends on it."""
_OBJECTS = 10_000
"""How many are made between two looks for garbage; 700 in Python 3.11, 2,000 in 3.13. Importing
torch makes 280,000 that stay, and every look goes through some of them."""


def run() -> int:
    """Run the command line as a whole process.

    A library that ends the process (SIGSEGV, SIGABRT) leaves Python's stack on stderr. One rank of
    several ends without taking the interpreter apart: threads of gloo's run until then, also of
    groups that were destroyed, and what they let go of in it may abort the process after all was
    done (https://github.com/pytorch/pytorch/issues/190489).
    """
    if sys.stderr is not None:
        faulthandler.enable()
    # What is registered first is called last: at the end of a process nothing is looked through.
    gc.set_threshold(_OBJECTS)
    atexit.register(gc.freeze)
    # A path of other bytes, or a caption on a terminal of ASCII, must not end what is done.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Read by libgomp when torch loads it, which has not happened yet.
    if "OMP_WAIT_POLICY" not in os.environ and os.getloadavg()[0] > (os.cpu_count() or 1) / 4:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    ended: list[int] = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The first to be registered is the last to be called.
        atexit.register(_leave, ended)
    ended.append(main())
    return ended[0]


def _leave(ended: Sequence[int]) -> None:
    if ended:  # else an exception is on its way out, with a status of its own
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0])


# Workers of a DataLoader may import this module again under another name.
if __name__ == "__main__":
    sys.exit(run())
