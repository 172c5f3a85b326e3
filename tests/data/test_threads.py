"""Threads read the samples of a batch side by side: the same batches, and waits that overlap."""

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace

import pytest

from mmtrain.data.shards import kept, reading
from mmtrain.data.threads import Threads
from mmtrain.errors import UsageError
from tests.data.shard_files import build_data, pairs, write_set, write_shard
from tests.data.storage.fault_server import serving
from tests.data.storage.test_remote import assert_same

WORD: ContextVar[str] = ContextVar("word", default="")


def test_order_exceptions_and_context() -> None:
    threads = Threads(3)
    WORD.set("told")
    made = threads.map(
        lambda i: (time.sleep(0.01 * (3 - i)), i, WORD.get(), threading.get_ident()), range(4)
    )
    assert [(i, word) for _, i, word, _ in made] == [(i, "told") for i in range(4)]
    assert len({thread for *_, thread in made}) > 1
    with pytest.raises(ZeroDivisionError):
        threads.map(lambda i: 1 // i, [2, 1, 0, 3])
    assert pickle.loads(pickle.dumps(threads)).map(str, [1]) == ["1"]
    assert {thread for *_, thread in [(threading.get_ident(),)]} == set(
        Threads(1).map(lambda _: threading.get_ident(), range(3))
    )


@pytest.mark.parametrize("fails", [{3: 0.0, 1: 0.05}, {0: 0.03, 1: 0.0, 2: 0.01}, {7: 0.0}])
def test_the_first_that_fails_is_told_and_what_is_left_is_not_begun(fails) -> None:
    begun = []

    def make(number: int) -> None:
        begun.append(number)
        time.sleep(fails.get(number, 0.1))
        if number in fails:
            raise KeyError(number)

    with pytest.raises(KeyError, match=str(min(fails))):
        Threads(4).map(make, range(100))
    assert max(begun) < 20
    assert Threads(4).map(str, []) == []


def test_a_thread_is_asked_once_whatever_it_makes(monkeypatch) -> None:
    """To ask costs more than a look-up in the cache."""
    asked = []
    submit = ThreadPoolExecutor.submit

    def counted(pool, *arguments):
        asked.append(arguments)
        return submit(pool, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", counted)
    assert Threads(3).map(str, range(200)) == [str(number) for number in range(200)]
    assert len(asked) == 3


def test_a_fork_begins_threads_of_its_own() -> None:
    threads = Threads(2)
    assert threads.map(str, range(3)) == ["0", "1", "2"]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # would wait for ever for threads that it has not
        os.write(writing, "".join(threads.map(str, range(3))).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 9) == b"012"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_one_thread(tmp_path, workers, monkeypatch) -> None:
    """Bad samples among them, and fewer files and indexes kept than are read from."""
    write_set(tmp_path / "set", (7, 9, 6))
    bad = pairs(22, 6)
    bad[1][1]["png"] = bad[1][1].pop("webp", b"") and b"no image"
    bad[4][1].pop("txt")
    write_shard(tmp_path / "set" / "bad.tar", bad)
    monkeypatch.setattr(reading, "_MAX_OPEN", 3)
    monkeypatch.setattr(kept, "_MOST", 1)  # an index goes while its file is open
    one, many = (
        list(build_data(str(tmp_path / "set"), workers=w, threads=n).iterate(0, 12))
        for w, n in ((0, 1), (workers, 5))
    )
    assert any(batch.bad for batch in one)
    for a, b in zip(one, many, strict=True):
        assert a.bad == b.bad
    stripped = [[_without_bad(batch) for batch in batches] for batches in (one, many)]
    assert_same(*stripped)


def _without_bad(batch):
    return replace(batch, bad=())


def test_remote_shards_are_waited_for_side_by_side(tmp_path) -> None:
    """Eight at a time, counted at the server; one at a time where one thread is asked for."""
    write_set(tmp_path / "set", (8, 8))
    busy, most, lock = 0, 0, threading.Lock()

    def slow(path: str, number: int) -> str:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        with lock:
            busy -= 1
        return ""

    seen = {}
    for threads in (1, None):
        with serving(tmp_path / "set", fault=slow) as web:
            data = build_data(
                f"{web.url}/{{000..001}}.tar", threads=threads, index_dir=str(tmp_path / "index")
            )
            most = 0
            list(data.iterate(0, 2))
            seen[threads] = most
    assert seen[1] == 1 and 3 <= seen[None] <= 8


def test_what_cannot_be_read_so_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"data\.threads = 4 reads shards alone; pack the data"):
        build_data("synthetic:64", threads=4)
    with pytest.raises(ValueError, match="threads = 0 must be"):
        build_data("synthetic:64", threads=0)
