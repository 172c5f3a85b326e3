"""Batches made ahead in other processes, in order, with one line for whatever goes wrong there."""

import contextlib
import signal
import sys
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mmtrain.errors import UsageError, WorkerKilledError

_WORKERS_IGNORE = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Pinnable(Protocol):
    """A batch: anything that can move into page-locked memory."""

    def pin_memory(self: "BatchT") -> "BatchT":
        """The same batch, page-locked."""
        ...


BatchT = TypeVar("BatchT", bound=Pinnable)
_MadeT = TypeVar("_MadeT", bound=Pinnable, covariant=True)


class BatchesByNumber(Protocol[_MadeT]):
    """What a worker holds: pickled, or copied by a fork."""

    def batch(self, number: int) -> _MadeT:
        """One batch; a pure function of its number."""
        ...


def iterate_batches(
    batches: BatchesByNumber[BatchT],
    start: int,
    stop: int,
    *,
    workers: int,
    prefetch: int,
    pin_memory: bool,
) -> Generator[BatchT, None, None]:
    """The batches from `start` up to `stop`, in order.

    Closing the iterator, or leaving it to be collected, ends the workers.

    Args:
        batches: makes them.
        start: number of the first.
        stop: number behind the last.
        workers: processes; 0: none, each batch is made when it is asked for.
        prefetch: batches that each worker makes ahead.
        pin_memory: put them into page-locked memory.

    Raises:
        UsageError: what `batch` raised, wherever that was.
        WorkerKilledError: the system killed a worker.
    """
    workers = min(workers, stop - start)
    if workers < 1:
        for number in range(start, stop):
            batch = batches.batch(number)
            yield batch.pin_memory() if pin_memory else batch
        return
    loader = partial(
        DataLoader,
        _Batches(batches),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=prefetch,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_main,
        # Its own: else it takes a number from the generator that the run's checkpoint holds.
        generator=torch.Generator(),
    )
    with _signals_kept(), warnings.catch_warnings():
        # Of more workers than cores: whoever reads from a slow disk wants them.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        made: Any = iter(loader())
    try:
        for batch in made:
            if isinstance(batch, _Failure):
                raise UsageError(batch.message)
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0].rstrip(". ")
        raise WorkerKilledError(
            f"data.workers = {workers}: {reason}, as happens where memory is short; use fewer "
            "workers or a smaller data.prefetch, and go on with --resume"
        ) from error
    finally:
        # By name: a traceback in flight may keep the iterator, and so the workers, alive.
        made._shutdown_workers()


@dataclass(frozen=True)
class _Failure:
    """A user's mistake on its way out of a worker; torch would wrap the exception's traceback."""

    message: str


class _Batches(Dataset[BatchT | _Failure], Generic[BatchT]):
    """Batch number -> the batch, as a DataLoader wants it."""

    def __init__(self, batches: BatchesByNumber[BatchT]) -> None:
        self._batches = batches

    def __getitem__(self, number: int) -> BatchT | _Failure:
        try:
            return self._batches.batch(number)
        except UsageError as error:
            return _Failure(str(error))


def _leave_signals_to_main(_: int) -> None:
    """Ctrl-C and a scheduler's signals reach all processes of a run; only the main one acts.

    It may want more batches before it stops, and closes the workers when it does. Where it leaves
    while it is given a tensor, the thread that gives it would print a traceback.
    """
    for number in _WORKERS_IGNORE:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _hide_that_main_left


def _hide_that_main_left(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """What surrounds the birth of workers, as far as signals go.

    Signals wait, since workers would act on them until they ignore them. And torch's handler of
    SIGCHLD goes again: it would raise a dead worker's error anywhere in the main process, amid a
    backward pass too, where it is no line of ours; waiting for a batch finds the dead all the same.
    """
    on_child = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WORKERS_IGNORE)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if signal.getsignal(signal.SIGCHLD) is not on_child:
            signal.signal(signal.SIGCHLD, on_child)
