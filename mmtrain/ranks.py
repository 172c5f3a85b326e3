"""What all ranks of a run do together; without a process group the one process is rank 0 of 1."""

import contextvars
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from typing import Any, TypeVar

import torch.distributed as dist

_ASKED_EVERY = 5.0
T = TypeVar("T")


def is_alone() -> bool:
    """Whether there is no process group."""
    return not (dist.is_available() and dist.is_initialized())


def own_rank() -> int:
    """This process's rank in the run."""
    return 0 if is_alone() else dist.get_rank()


def num_ranks() -> int:
    """How many the run has."""
    return 1 if is_alone() else dist.get_world_size()


def gather(value: T, *, group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank's value, on every rank.

    Args:
        value: what pickle takes.
        group: of all ranks, for a thread beside the main one; None: the default group.
    """
    if is_alone():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def on_every_rank(action: Callable[[], T]) -> T:
    """Run on every rank, by itself; where one of them cannot, all raise the first one's error.

    Args:
        action: holds nothing collective.
    """
    result: Any = None
    caught: Exception | None = None
    try:
        result = action()
    except Exception as error:  # handed on to all ranks, below
        caught = error
    error = next((one for one in gather(caught) if one is not None), None)
    if error is not None:
        # What ranks exchange has no traceback; this rank's own has.
        raise error from (None if error is caught else caught)
    return result


def on_rank_0(action: Callable[[], T], *, group: dist.ProcessGroup | None = None) -> T:
    """Run on rank 0 while the others wait; all return its result or raise its error.

    Args:
        action: what rank 0 does.
        group: as in `gather`.
    """
    result: Any = None
    error: Exception | None = None
    if own_rank() == 0:
        try:
            result = action()
        except Exception as caught:  # handed on to all ranks, below
            error = caught
    if not is_alone():
        outcome = [result, error]
        dist.broadcast_object_list(outcome, src=0, group=group)
        result, error = outcome
    if error is not None:
        raise error
    return result


def on_rank_0_at_leisure(action: Callable[[], T]) -> T:
    """As `on_rank_0`, for what may take longer than a collective may: the others ask now and then.

    Args:
        action: what rank 0 does, in a thread; holds nothing collective.
    """
    future: Future[T] = Future()

    def carry_out() -> None:
        try:
            future.set_result(action())
        except Exception as error:  # handed on to all ranks, below
            future.set_exception(error)

    if own_rank() == 0:
        run = contextvars.copy_context().run
        # A daemon: whoever interrupts the waiting is not kept by it.
        threading.Thread(target=run, args=(carry_out,), daemon=True).start()
    while not on_rank_0(lambda: bool(futures.wait([future], timeout=_ASKED_EVERY).done)):
        pass
    return on_rank_0(future.result)
