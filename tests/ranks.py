"""Run a function on several gloo ranks of this machine, or a command as a job to kill.

They are forked off a server that has imported what they import, 4 s of CPU for each else, and
has done nothing with it: no thread, no random number, no use of autograd. It is started by the
first of a process of tests.
"""

import faulthandler
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from mmtrain.cli import main
from mmtrain.parallel.mesh import leave_ranks

multiprocessing.set_forkserver_preload(
    ["pytest", "torch", "mmtrain.run", "mmtrain.cli", "tests.parallel.tiny_clip"]
)


def run_ranks(function: Callable[..., None], world_size: int, *args: Any) -> None:
    """Call function(rank, *args) on `world_size` new processes that share a process group.

    The function must be importable; an exception on any rank fails the caller.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        torch.multiprocessing.start_processes(  # pyright: ignore[reportPrivateImportUsage]
            _enter,
            args=(_Surroundings(), function, world_size, store, args),
            nprocs=world_size,
            start_method="forkserver",
        )


def start_job(
    words: list[str],
    *,
    output: IO[str],
    environment: dict[str, str] | None = None,
    prepare: Callable[..., None] | None = None,
    args: tuple[Any, ...] = (),
) -> BaseProcess:
    """`mmtrain WORDS...` as a process with a session of its own and one thread -> the process.

    Args:
        words: of the command line.
        output: where stdout and stderr go.
        environment: beside that of the caller.
        prepare: called there before the command; importable.
        args: of `prepare`.
    """
    surroundings = _Surroundings(environment, output.fileno(), output.fileno())
    job = multiprocessing.get_context("forkserver").Process(
        target=_run_job, args=(surroundings, words, prepare, args)
    )
    job.start()
    return job


def _run_job(
    _: "_Surroundings", words: list[str], prepare: Callable[..., None] | None, args: tuple[Any, ...]
) -> None:
    os.setsid()
    # Its workers are of a server of its own, as those of a job are, and end with its session.
    forkserver._forkserver.__init__()  # pyright: ignore[reportAttributeAccessIssue]
    faulthandler.enable()
    torch.set_num_threads(1)
    if prepare is not None:
        prepare(*args)
    status: Any = 1
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Surroundings:
    """Environment and output of the caller, which a rank takes for those of the server."""

    def __init__(
        self, more: dict[str, str] | None = None, stdout: int = 1, stderr: int = 2
    ) -> None:
        self.more, self.outputs = more or {}, (stdout, stderr)

    def __reduce__(self):
        return _take, (dict(os.environ) | self.more, *map(reduction.DupFd, self.outputs))


def _take(environment: dict[str, str], *outputs: Any) -> _Surroundings:
    os.environ.clear()
    os.environ |= environment
    for number, output in enumerate(outputs, 1):
        held = output.detach()
        os.dup2(held, number)
        os.close(held)
    return _Surroundings()


def _enter(
    rank: int,
    _: "_Surroundings",
    function: Callable[..., None],
    world_size: int,
    store: str,
    args: tuple[Any, ...],
) -> None:
    faulthandler.enable()  # where it was, if a library ends the process
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    function(rank, *args)  # leave only after it: else the others fail too, and may end first
    leave_ranks()
    # As mmtrain/__main__.py ends: gloo's threads may abort an interpreter that is taken apart.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
