"""Workers: mistakes in one line, signals left to the main process, nothing left behind."""

import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmtrain.data.batch import ImageTextBatch
from mmtrain.data.workers import iterate_batches
from mmtrain.errors import UsageError, WorkerKilledError


def blank(number: int) -> ImageTextBatch:
    ones = torch.full((2,), number)
    return ImageTextBatch(
        images_BCHW=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        tokens_BT=ones[:, None],
        text_length_B=ones,
        label_B=ones,
        position_B=ones,
        valid_B=ones > -1,
        epoch=0,
        keys=(str(number), str(os.getpid())),
    )


class Batches:
    """Batch 5 is a mistake of the user, 6 one of ours, 7 the death of its worker, 8 and 9 what
    multiprocessing does in a worker's thread whose connection fails, 2 a shape that does not fit.
    """

    def batch(self, number: int) -> ImageTextBatch:
        if number == 5:
            raise UsageError("data.train: shard five is gone; fetch it")
        if number == 6:
            raise KeyError("six")
        if number == 2:
            torch.ones(2) + torch.ones(3)
        if number == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        if number in (8, 9):
            error = ConnectionResetError("gone") if number == 8 else OSError("nine")
            sys.excepthook(type(error), error, None)
        return blank(number)


def iterate(start: int, stop: int, workers: int = 2) -> Iterator[ImageTextBatch]:
    return iterate_batches(Batches(), start, stop, workers=workers, prefetch=2, pin_memory=False)


def assert_no_workers() -> None:
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order(workers):
    batches = list(iterate(10, 17, workers))
    assert [batch.keys[0] for batch in batches] == [str(n) for n in range(10, 17)]
    assert len({batch.keys[1] for batch in batches}) == max(1, workers)
    assert (str(os.getpid()) in {batch.keys[1] for batch in batches}) == (workers == 0)
    assert_no_workers()


class Collecting:
    """Counts, by a text of the batch, the bytes that looking for garbage makes a worker's own."""

    def __init__(self) -> None:
        self.many = [[number] for number in range(300_000)]

    def batch(self, number: int) -> ImageTextBatch:
        before = private_bytes()
        gc.collect()
        return replace(blank(number), keys=(str(private_bytes() - before), ""))


def private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def test_a_worker_that_collects_garbage_copies_no_pages_of_the_main_process():
    batches = Collecting()
    lists = sys.getsizeof(batches.many[0]) * len(batches.many)
    made = list(iterate_batches(batches, 0, 2, workers=2, prefetch=2, pin_memory=False))
    assert max(int(batch.keys[0]) for batch in made) < lists / 4


def test_no_more_workers_than_batches():
    assert len({batch.keys[1] for batch in iterate(0, 2, workers=8)}) == 2
    assert list(iterate(3, 3)) == list(iterate(4, 3)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_is_one_line_and_comes_in_its_turn(workers):
    # Not as far as 7: a worker that is killed may take with it what it has not handed over yet.
    batches = iterate(3, 7, workers)
    assert next(batches).keys[0] == "3"
    assert next(batches).keys[0] == "4"
    with pytest.raises(UsageError) as caught:
        next(batches)
    assert str(caught.value) == "data.train: shard five is gone; fetch it"
    assert_no_workers()


@pytest.mark.parametrize("mistake", [UsageError("five is gone"), KeyError("five is gone")])
def test_a_worker_that_failed_makes_nothing_more(tmp_path, mistake):
    """Killed over a later batch, it would take the failure with it that it has yet to hand over."""

    class Noted:
        def batch(self, number: int) -> ImageTextBatch:
            (tmp_path / str(number)).touch()
            if number == 5:
                raise mistake
            return blank(number)

    batches = iterate_batches(Noted(), 3, 12, workers=2, prefetch=3, pin_memory=False)
    assert [next(batches).keys[0] for _ in range(2)] == ["3", "4"]
    while not (tmp_path / "8").exists():  # the other worker's
        time.sleep(0.01)
    time.sleep(0.2)
    with pytest.raises(type(mistake), match="five is gone"):
        next(batches)
    assert not {path.name for path in tmp_path.iterdir()} & {"7", "9", "11"}
    assert_no_workers()


def test_a_defect_keeps_its_traceback():
    with pytest.raises(KeyError, match=r"(?s)in batch\n.*six"):
        list(iterate(6, 8))
    assert_no_workers()


def test_a_shape_that_does_not_fit_is_a_defect_and_no_lack_of_memory():
    with pytest.raises(RuntimeError, match=r"(?s)in batch\n.*size of tensor a") as caught:
        list(iterate(2, 4))
    assert not isinstance(caught.value, WorkerKilledError)
    assert_no_workers()


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (signal.SIGKILL, "by SIGKILL, as happens where memory is short"),
        pytest.param(
            signal.SIGBUS,
            "by SIGBUS, as happens where /dev/shm is full",
            marks=pytest.mark.slow,
        ),
        pytest.param(signal.SIGSEGV, "by SIGSEGV, a fault of a library", marks=pytest.mark.slow),
    ],
)
def test_a_killed_worker_is_one_line(monkeypatch, number, why):
    monkeypatch.setattr(signal, "SIGKILL", number)  # what batch 7 sends
    with pytest.raises(
        WorkerKilledError, match=rf"^data.workers = 2: DataLoader worker .*{why}.*; use fewer"
    ) as caught:
        list(iterate(7, 12))
    assert "\n" not in str(caught.value)
    assert_no_workers()


def test_batches_that_shared_memory_has_no_room_for_go_through_pipes(monkeypatch, capfd):
    def no_room(_: torch.Tensor) -> None:
        raise RuntimeError(f"unable to allocate: {os.strerror(errno.ENOSPC)} (28)")

    expected = [blank(number) for number in range(10, 15)]
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    batches = list(iterate(10, 15))
    for batch, same in zip(batches, expected, strict=True):
        assert batch.keys[0] == same.keys[0] and torch.equal(batch.tokens_BT, same.tokens_BT)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("mmtrain: /dev/shm has ") and "docker run --shm-size" in line
    assert_no_workers()


def test_a_defect_in_sharing_is_not_taken_for_a_lack_of_room(monkeypatch):
    def broken(_: torch.Tensor) -> None:
        raise RuntimeError("no such storage")

    monkeypatch.setattr(torch.Tensor, "share_memory_", broken)
    with pytest.raises(RuntimeError, match="no such storage"):
        list(iterate(10, 12))


_SMALL_DISK = """
import torch
from mmtrain.data.workers import iterate_batches
from tests.data.test_workers import blank
import dataclasses

class Large:
    def batch(self, number):
        images = torch.full((3, 1 << 20), number, dtype=torch.uint8)
        return dataclasses.replace(blank(number), images_BCHW=images)

if __name__ == "__main__":
    made = iterate_batches(Large(), 10, 20, workers=2, prefetch=2, pin_memory=False)
    print([int(batch.images_BCHW.amin()) for batch in made])
"""


@pytest.mark.parametrize(  # no batch fits; some do
    "size", [pytest.param("2m", marks=pytest.mark.slow), "8m"]
)
def test_a_small_shared_memory_hangs_nobody(size):
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable]
    done = subprocess.run([*command, _SMALL_DISK], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == str(list(range(10, 20))), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"of {size[0]} MB left, too little" in done.stderr


def test_a_worker_says_nothing_of_a_main_process_that_left(capfd):
    list(iterate(8, 9))
    assert capfd.readouterr().err == ""
    list(iterate(9, 10))
    assert capfd.readouterr().err == "OSError: nine\n"


def test_closing_ends_the_workers():
    batches = iterate(10, 10_000)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert_no_workers()
    for _ in iterate(10, 10_000):
        break
    gc.collect()
    assert_no_workers()


def test_the_runs_random_numbers_and_signals_are_left_alone():
    """A generator that a checkpoint holds must not depend on workers being started."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    list(iterate(10, 14))
    assert torch.equal(torch.get_rng_state(), state)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


def run(mode: str, output: Path) -> None:
    """A little main process in a session of its own; all it or its workers print goes to a file."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
    told = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # not so in a shell's background
    if mode == "save":
        signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    try:
        for batch in iterate(10, 100_000):
            if told and int(batch.keys[0]) > 150:
                print("saved")
                break
            time.sleep(0.01)
            print(batch.keys[0])
    except KeyboardInterrupt:
        print("interrupted")


def started(mode: str, output: Path) -> multiprocessing.Process:
    """The process, busy with its batches; forked, since importing torch takes seconds."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(mode, output))
    process.start()
    while len(lines(output)) < 5:
        assert process.is_alive()
        time.sleep(0.01)
    return process  # pyright: ignore[reportReturnType]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("number", "mode", "last"),
    [(signal.SIGINT, "stop", "interrupted"), (signal.SIGTERM, "save", "saved")],
)
def test_signals_to_all_processes_are_the_main_ones(tmp_path, number, mode, last):
    """As a terminal and a scheduler send them: workers go on until the main process ends."""
    process = started(mode, tmp_path / "output")
    os.killpg(process.pid or 0, number)
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode == 0
    *batches, final = lines(tmp_path / "output")
    assert final == last
    assert batches == [str(n) for n in range(10, 10 + len(batches))]  # and nobody's traceback
    with pytest.raises(ProcessLookupError):  # nobody is left in its group
        os.killpg(process.pid or 0, 0)


@pytest.mark.slow
def test_workers_end_when_the_main_process_is_killed(tmp_path):
    process = started("stop", tmp_path / "output")
    process.kill()
    process.join()
    for _ in range(600):
        try:
            os.killpg(process.pid or 0, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("workers outlived the main process by a minute")
