"""A step of an evaluation that all ranks get through, or none.

Ranks meet before each collective and say whether they got there: one that failed, wherever that
was, comes to the next meeting, so that no rank waits for one that is not coming. All then raise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from mmtrain.collectives import sum_
from mmtrain.errors import UsageError


class _TheirsToo(UsageError):
    """What all ranks raise at a meeting, so that it needs no other one."""


@contextmanager
def on_all_ranks(group: ProcessGroup | None, device: torch.device) -> Iterator[None]:
    """What one rank cannot do in the context stops all of them; its end is a meeting.

    What is collective in the context begins with one too: `sum_of_all`, `gather_all`, another such
    context. A single process keeps the error as it is.

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
    except _TheirsToo:
        raise
    except Exception as error:  # handed on to all ranks, below
        caught = error
    _meet(group, device, caught)


def sum_of_all(x: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """`sum_`, behind a meeting.

    Raises:
        UsageError: on every rank, what kept one of them from coming.
    """
    if group is not None:
        _meet(group, x.device, None)
    return sum_(x, group=group)


def gather_all(value: Any, *, group: ProcessGroup | None, device: torch.device) -> list[Any]:
    """Every rank's value, which pickle takes, behind a meeting.

    Raises:
        UsageError: on every rank, what kept one of them from coming.
    """
    if group is None:
        return [value]
    _meet(group, device, None)
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _meet(group: ProcessGroup, device: torch.device, caught: Exception | None) -> None:
    if not int(sum_(torch.tensor(int(caught is not None), device=device), group=group)):
        return
    told: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, None if caught is None else in_a_line(caught), group=group)
    rank, line = next((rank, line) for rank, line in enumerate(told) if line is not None)
    everybodys = all(each == line for each in told)
    raise _TheirsToo(line if everybodys else f"rank {rank}: {line}") from caught


def is_foreseen(error: Exception) -> bool:
    """Whether the line says all: a mistake, or a disk's fault; of what a meeting told that of this
    rank, which is its cause."""
    if isinstance(error, _TheirsToo) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return isinstance(error, UsageError | OSError)


def in_a_line(error: Exception) -> str:
    """An error as a user may read it: of one that we did not foresee the class is told too."""
    text = " ".join(str(error).split()) or "no reason is given"
    return text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"
