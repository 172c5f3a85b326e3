"""Threads where work waits, and only there."""

import threading
import time

import pytest

from mmtrain.data.shards.side_by_side import side_by_side


def compute(item: int) -> tuple[int, str]:
    sum(range(2000))
    return item, threading.current_thread().name


def wait(item: int) -> tuple[int, str]:
    time.sleep(0.005)
    return item, threading.current_thread().name


def test_what_waits_goes_on_by_threads():
    began = time.perf_counter()
    made = list(side_by_side(wait, range(200), threads=8))
    assert time.perf_counter() - began < 0.7
    assert [item for item, _ in made] == list(range(200))
    assert 1 < len({name for _, name in made}) <= 9


def test_what_does_not_wait_stays_in_one():
    made = list(side_by_side(compute, range(200), threads=8))
    assert [item for item, _ in made] == list(range(200))
    assert {name for _, name in made} == {threading.current_thread().name}


@pytest.mark.parametrize("num", [0, 1, 3])
def test_few(num: int):
    assert [item for item, _ in side_by_side(wait, range(num), threads=8)] == list(range(num))


@pytest.mark.parametrize("bad", [0, 150])
def test_a_fault_is_the_callers(bad: int):
    def work(item: int) -> int:
        if item == bad:
            raise OSError("gone")
        return wait(item)[0]

    with pytest.raises(OSError, match="gone"):
        list(side_by_side(work, range(200), threads=4))
