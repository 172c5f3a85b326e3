"""A step of an evaluation that all ranks get through, or none."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from mmtrain.collectives import sum_
from mmtrain.errors import UsageError


@contextmanager
def on_all_ranks(group: ProcessGroup | None, device: torch.device) -> Iterator[None]:
    """What one rank cannot do in the context stops all of them at its end, which is collective.

    Without that the others would wait for a rank that is not coming. Nothing collective belongs
    into the context. A single process keeps the error as it is.

    Args:
        group: the ranks. None: one process.
        device: of what they exchange.

    Raises:
        UsageError: on every rank, naming the first error.
    """
    if group is None:
        yield
        return
    caught: Exception | None = None
    try:
        yield
    except Exception as error:  # handed on to all ranks, below
        caught = error
    if not int(sum_(torch.tensor(int(caught is not None), device=device), group=group)):
        return
    told: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, None if caught is None else in_a_line(caught), group=group)
    rank, line = next((rank, line) for rank, line in enumerate(told) if line is not None)
    raise UsageError(f"rank {rank}: {line}") from caught


def in_a_line(error: Exception) -> str:
    """An error as a user may read it: of one that we did not foresee the class is told too."""
    text = " ".join(str(error).split()) or "no reason is given"
    return text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"
