"""`mmtrain.data.open_stream`: what cannot be indexed, strictly read and exact to the shard."""

import gc
import json
import shlex
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import webdataset

from mmtrain.data import SampleError, Stream, open_stream
from mmtrain.data.storage import one_way, patience
from mmtrain.errors import UsageError
from tests.data.shard_files import write_set
from tests.data.storage.fault_server import serving

SIZES = [9, 5, 12, 7]


class _Quiet(SimpleHTTPRequestHandler):
    """Knows no ranges, and says nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path / "set", SIZES)
    return tmp_path / "set"


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def piped(folder: Path) -> str:
    return f"pipe:cat {shlex.quote(str(folder))}/{{000..003}}.tar"


def keys(stream: Stream) -> list[str]:
    return [files["__key__"] for files in stream]


def theirs(urls: list[str]) -> dict[str, dict[str, bytes]]:
    """webdataset's own reading of the same tars."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
        found = {s["__key__"]: s for s in webdataset.WebDataset(urls, shardshuffle=False)}
        gc.collect()
    return {key: {k: v for k, v in s.items() if k[:2] != "__"} for key, s in found.items()}


@pytest.mark.parametrize("form", ["pipe", "http", "path"])
def test_samples_are_those_of_webdataset(folder: Path, server: str, form: str) -> None:
    urls = {
        "pipe": piped(folder),
        "http": f"{server}/{{000..003}}.tar",
        "path": f"{folder}/{{000..003}}.tar",
    }
    found: dict[str, dict[str, bytes]] = {}
    for files in open_stream(urls[form], allow_pipe=True):
        assert files.pop("__url__").endswith(".tar")
        found[files.pop("__key__")] = files
    assert found == theirs([str(path) for path in sorted(folder.glob("*.tar"))])
    assert len(found) == sum(SIZES)


def test_the_order_is_the_seed_s_and_mixes_shards(folder: Path) -> None:
    def opened(**options: Any) -> Stream:
        return open_stream(piped(folder), allow_pipe=True, **options)

    stream = opened(seed=1)
    epochs = [keys(stream), keys(stream)]
    assert (
        stream.epoch == 2 and sorted(epochs[0]) == sorted(epochs[1]) and len(set(epochs[0])) == 33
    )
    again = opened(seed=1)
    assert [keys(again), keys(again)] == epochs and epochs[0] != epochs[1]
    assert keys(opened(seed=2)) != epochs[0]
    by_shard = keys(opened(seed=1, buffer=1))
    assert by_shard != epochs[0]
    numbers = [int(key) for key in by_shard]
    breaks = sum(b != a + 1 for a, b in pairwise(numbers))
    assert breaks <= 3  # a shard after another, each in its order


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_out_whole_shards(folder: Path, world_size: int) -> None:
    parts = [
        keys(open_stream(piped(folder), allow_pipe=True, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert sorted(key for part in parts for key in part) == [f"{n:05}" for n in range(33)]


@pytest.mark.parametrize("buffer", [1, 6, 1000])
@pytest.mark.parametrize("taken", [0, 1, 10, 25, 32])
def test_a_state_misses_nothing_and_repeats_no_whole_shard(
    folder: Path, buffer: int, taken: int
) -> None:
    def opened() -> Stream:
        return open_stream(piped(folder), allow_pipe=True, buffer=buffer, seed=4)

    first = opened()
    rows = iter(first)
    found = [next(rows)["__key__"] for _ in range(taken)]
    state = json.loads(json.dumps(first.state_dict()))
    rows.close()
    second = opened()
    second.load_state_dict(state)
    rest = keys(second)
    assert {*found, *rest} == {f"{n:05}" for n in range(33)} and len(set(rest)) == len(rest)
    starts = [sum(SIZES[:n]) for n in range(4)]
    for shard in state["done"]:
        own = {f"{n:05}" for n in range(starts[shard], starts[shard] + SIZES[shard])}
        assert own <= set(found) and not own & set(rest)
    if buffer == 1:
        assert len(state["done"]) >= (taken > 12) + (taken > 24)


def test_what_a_function_refuses_is_left_out(folder: Path) -> None:
    def odd(files: dict[str, Any]) -> int:
        number = int(files["__key__"])
        if number % 2 == 0:
            raise SampleError("even")
        return number

    stream = open_stream(f"{folder}/{{000..003}}.tar", map=odd)
    assert sorted(stream) == list(range(1, 33, 2)) and stream.bad == {"even": 17}


@pytest.mark.parametrize(
    ("damage", "told"),
    [("cut", r"001.tar at byte \d+: "), ("gone", "001.tar cannot be read: exit"), ("empty", "001")],
)
def test_damage_is_told_and_not_taken_for_the_end(
    folder: Path, tmp_path: Path, damage: str, told: str
) -> None:
    """webdataset's own reader goes on without a word where a tar is cut between two members."""
    path = folder / "001.tar"
    content = path.read_bytes()
    whole = content.rstrip(b"\0")
    if damage == "cut":
        path.write_bytes(content[: len(whole) // 1024 * 512])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(UsageError, match=told):
        list(open_stream(piped(folder), allow_pipe=True, retry_seconds=0))


LIKE_503 = [pytest.param(status, marks=pytest.mark.slow) for status in ("500", "429")]


@pytest.mark.parametrize("fault", ["503", "cut", "drop", "stall", *LIKE_503])
def test_a_server_that_fails_is_asked_again(folder: Path, monkeypatch, capsys, fault: str) -> None:
    """Every shard's first answer; samples come once, and each fault is told once."""
    monkeypatch.setattr(one_way, "_STALL", 0.3)
    monkeypatch.setattr(patience, "_BUSY_PAUSE", 0.1)
    expected = theirs([str(path) for path in sorted(folder.glob("*.tar"))])
    asked: set[str] = set()

    def first(path: str, number: int) -> str:
        again, _ = path in asked, asked.add(path)
        return "" if again else fault

    with serving(folder, fault=first, stall=1.0) as server:
        stream = open_stream(f"{server.url}/{{000..003}}.tar", retry_seconds=20)
        assert sorted(keys(stream)) == sorted(expected)
        assert server.requests["GET"] == 8
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all("taken anew" in line and server.url in line for line in lines)


@pytest.mark.parametrize(
    "break_off", ["head -c 5000 {}; exit 3", "head -c 5000 {} | cat", "kill -9 $$"]
)
def test_a_command_that_breaks_off_is_run_again(
    folder: Path, tmp_path: Path, capsys, break_off: str
) -> None:
    """Also where its status says that all is well."""
    urls = []
    for number, path in enumerate(sorted(folder.glob("*.tar"))):
        mark = shlex.quote(str(tmp_path / f"mark{number}"))
        broken = break_off.format(path)
        urls.append(f"pipe:if [ -e {mark} ]; then cat {path}; else touch {mark}; {broken}; fi")
    found = keys(open_stream(urls, allow_pipe=True, retry_seconds=20))
    assert sorted(found) == [f"{n:05}" for n in range(sum(SIZES))]
    assert capsys.readouterr().err.count("taken anew") == 4


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, "503 .*, tried for 0 s"), (0.5, "503 .*, tried for 0.5 s")]
)
def test_a_server_that_stays_broken_ends_it_in_one_line(
    folder: Path, seconds: float, told: str
) -> None:
    with serving(folder, fault=lambda path, number: "503") as server:
        stream = open_stream(f"{server.url}/000.tar", retry_seconds=seconds)
        with pytest.raises(UsageError, match=rf"000.tar cannot be read: {told}"):
            list(stream)
    with pytest.raises(UsageError, match=r"000.tar cannot be read: (?!.*000.tar).* refused, tried"):
        list(open_stream(f"{server.url}/000.tar", retry_seconds=0.2))


def test_what_does_not_pass_is_told_at_once(folder: Path) -> None:
    told = r"nothing.tar cannot be read: 404 [^,]*$"
    with serving(folder) as server, pytest.raises(UsageError, match=told):
        list(open_stream(f"{server.url}/nothing.tar", retry_seconds=60))
    with pytest.raises(UsageError, match=r"a.tar cannot be read: .*tried for 0 s"):
        list(open_stream("http://no-such-host.invalid/a.tar", retry_seconds=0))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "runs a command; allow_pipe = True lets it"),
        ({"allow_pipe": True, "buffer": 0}, "buffer = 0 must be at least 1"),
        ({"allow_pipe": True, "rank": 0, "world_size": 5}, "no more ranks than shards"),
        ({"allow_pipe": True, "rank": 2, "world_size": 2}, "rank = 2, world_size = 2"),
    ],
)
def test_mistakes_are_named(folder: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        open_stream(piped(folder), **options)
    state = open_stream(piped(folder), allow_pipe=True).state_dict()
    with pytest.raises(UsageError, match="of another seed"):
        open_stream(piped(folder), allow_pipe=True, seed=9).load_state_dict(state)
