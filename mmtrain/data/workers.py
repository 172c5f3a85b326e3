"""Batches made ahead in other processes, in order, with one line for whatever goes wrong there."""

import errno
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mmtrain.data.work import COUNTER, Work
from mmtrain.data.worker_process import (
    SHARED_MEMORY,
    begin,
    killed_by_system,
    signals_kept,
    start_method,
    started,
)
from mmtrain.errors import UsageError

_MB = 1 << 20
_NO_ROOM = "unable to allocate shared memory"


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
    told: Callable[[Work, int], None] | None = None,
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
        told: of each batch what it took, and how many were ready when it was asked for.

    Raises:
        UsageError: what `batch` raised, wherever that was.
        WorkerKilledError: the system killed a worker.
    """
    workers = min(workers, stop - start)
    told = told or _nobody
    if workers < 1:
        COUNTER.restart()
        for number in range(start, stop):
            batch, work = _counted(batches, number)
            told(work, 0)
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
        worker_init_fn=partial(begin, dict(os.environ)),
        # Its own: else it takes a number from the generator that the run's checkpoint holds.
        generator=torch.Generator(),
        multiprocessing_context=start_method(),
    )
    with signals_kept(), warnings.catch_warnings():
        # Of more workers than cores: whoever reads from a slow disk wants them.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        made: Any = started(loader, workers)
    is_told = False
    try:
        while True:
            num_ready = _num_ready(made)
            if (one := next(made, None)) is None:
                break
            if isinstance(one, _Failure):
                raise UsageError(one.message)
            told(one.work, num_ready)
            if not isinstance(one, _Packed):
                yield one.batch
                continue
            if not is_told:
                print(f"mmtrain: {_short_of_shared_memory(one)}", file=sys.stderr)
                is_told = True
            unpacked = pickle.loads(one.content)
            yield unpacked.pin_memory() if pin_memory else unpacked
    except RuntimeError as error:
        if (killed := killed_by_system(error, made, workers)) is None:
            raise
        raise killed from error
    finally:
        # By name: a traceback in flight may keep the iterator, and so the workers, alive.
        made._shutdown_workers()


def _nobody(work: Work, num_ready: int) -> None:
    """Is told what a batch took where nobody else is."""


@dataclass(frozen=True)
class _Failure:
    """A user's mistake on its way out of a worker; torch would wrap the exception's traceback."""

    message: str


@dataclass(frozen=True)
class _Made(Generic[BatchT]):
    """A batch, with what it took."""

    batch: BatchT
    work: Work

    def pin_memory(self) -> "_Made[BatchT]":
        """The same with the batch page-locked; DataLoader calls this."""
        return _Made(self.batch.pin_memory(), self.work)


@dataclass(frozen=True)
class _Packed:
    """A batch that goes through a pipe, since shared memory has no room for it."""

    content: bytes
    work: Work


class _Batches(Dataset[_Made[BatchT] | _Failure | _Packed], Generic[BatchT]):
    """Batch number -> the batch, as a DataLoader wants it.

    A worker that failed makes nothing more, whatever it is asked for: a thread hands its failure
    over, and is lost with it where the worker is killed over a batch that nobody will take.
    """

    def __init__(self, batches: BatchesByNumber[BatchT]) -> None:
        self._batches = batches
        self._failure: Exception | None = None

    def __getitem__(self, number: int) -> _Made[BatchT] | _Failure | _Packed:
        try:
            batch, work = self._made(number)
        except UsageError as error:
            return _Failure(str(error))
        return _Made(batch, work) if _share(batch) else _Packed(pickle.dumps(batch), work)

    def _made(self, number: int) -> tuple[BatchT, Work]:
        if self._failure is not None:
            raise self._failure
        try:
            return _counted(self._batches, number)
        except Exception as error:
            self._failure = error
            raise


def _counted(batches: BatchesByNumber[BatchT], number: int) -> tuple[BatchT, Work]:
    """A batch, and what it took."""
    COUNTER.begin()
    batch = batches.batch(number)
    return batch, COUNTER.end()


def _num_ready(made: Any) -> int:
    """Batches that workers have made and nobody took."""
    here = sum(len(each) > 1 for each in made._task_info.values())
    try:
        return here + made._data_queue.qsize()
    except NotImplementedError:  # macOS does not tell
        return here


def _share(batch: object) -> bool:
    """Move a batch's tensors into shared memory -> whether there was room.

    torch does this in a thread of the queue, where a failure loses the batch: the main process
    would wait for it for ever.
    """
    try:
        for value in vars(batch).values():
            if isinstance(value, torch.Tensor):
                value.share_memory_()
    except RuntimeError as error:
        # torch 2.11 tells another errno, which a call after the failed one left.
        if not any(told in str(error) for told in (os.strerror(errno.ENOSPC), _NO_ROOM)):
            raise
        return False
    return True


def _short_of_shared_memory(batch: _Packed) -> str:
    room = shutil.disk_usage(SHARED_MEMORY)
    return (
        f"{SHARED_MEMORY} has {room.free / _MB:.0f} of {room.total / _MB:.0f} MB left, too little "
        f"for data.workers' batches of {len(batch.content) / _MB:.0f} MB: they go through pipes, "
        "which is slower; give it more (docker run --shm-size) or lower data.prefetch"
    )
