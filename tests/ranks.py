"""Run a function on several gloo ranks of this machine."""

import faulthandler
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from mmtrain.parallel.mesh import leave_ranks


def run_ranks(function: Callable[..., None], world_size: int, *args: Any) -> None:
    """Call function(rank, *args) on `world_size` fresh processes that share a process group.

    The function must be importable; an exception on any rank fails the caller.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        torch.multiprocessing.spawn(  # pyright: ignore[reportPrivateImportUsage]
            _enter, args=(function, world_size, store, args), nprocs=world_size
        )


def _enter(
    rank: int, function: Callable[..., None], world_size: int, store: str, args: tuple[Any, ...]
) -> None:
    faulthandler.enable()  # where it was, if a library ends the process
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    try:
        function(rank, *args)
    finally:
        leave_ranks()
    # As mmtrain/__main__.py ends: gloo's threads may abort an interpreter that is taken apart.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
