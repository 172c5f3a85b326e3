"""What batches cost is counted where it is done and told with the batch, whoever made it."""

import time
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.work import COUNTER, Work
from mmtrain.data.work_sums import WorkSums
from tests.data.shard_files import build_data, write_set


@pytest.mark.parametrize("workers", [0, 2])
def test_bytes_and_stages_of_a_pass(tmp_path: Path, workers: int) -> None:
    """An epoch reads every image and text once, in whichever process."""
    data = build_data(write_set(tmp_path / "set", [9, 7]), workers=workers, batch_size=4)
    batches = list(data.iterate(0, 4))
    assert len(batches) == 4
    source = ShardSource(str(tmp_path / "set"))
    files = [source.read(n) for n in range(16)]
    expected = sum(len(v) for each in files for name, v in each.items() if name != "json")
    figures = data.work.figures()
    assert figures["data_bytes_read"] == expected
    assert all(figures[f"data_ms/{stage}"] > 0 for stage in ("read", "decode", "resize", "text"))
    stages = sum(value for name, value in figures.items() if name.startswith("data_ms/"))
    assert figures["data_batch_ms_p50"] <= figures["data_batch_ms_p99"] * 1.001
    assert stages <= 4.1 * figures["data_batch_ms_p99"]
    assert figures["data_memory_mb"] > 10 and figures["memory_mb"] > 10
    assert data.work.figures() == {}  # each line has its own batches
    (waiting, read, *_) = data.work.table(waited=1.0, passed=4.0)
    assert "25.0% of the time" in waiting and "4 batches" in read


def test_batches_that_wait_are_counted(tmp_path: Path) -> None:
    data = build_data(write_set(tmp_path / "set", [40]), workers=1, prefetch=4, batch_size=4)
    batches = data.iterate(0, 8)
    next(batches)
    data.work.figures()
    for _ in range(100):  # until the worker has made ahead what it may
        time.sleep(0.02)
    next(batches)
    assert data.work.figures()["data_ready"] >= 3
    batches.close()


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_are_those_of_the_times(seed: int) -> None:
    sums, times = WorkSums(), [(seed + 1) * 0.001 * n for n in range(1, 101)]
    for number in range(100):
        sums.add(Work(seconds=times[(number * 37) % 100]), num_ready=number % 2)
    figures = sums.figures()
    assert figures["data_batch_ms_p50"] == pytest.approx(1e3 * times[49], rel=0.02)
    assert figures["data_batch_ms_p99"] == pytest.approx(1e3 * times[98], rel=0.02)
    assert figures["data_ready"] == 0.5


def test_what_was_counted_before_a_batch_is_not_its_own() -> None:
    with COUNTER.stage("text"):
        pass
    COUNTER.read(99)
    COUNTER.begin()
    COUNTER.read(1)
    work = COUNTER.end()
    assert (work.bytes_read, work.stages) == (1, {})


@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_fetched_ahead_of_others_is_not_theirs(tmp_path: Path, workers: int) -> None:
    """Of batches of before, in the process that goes on with local ones or forks their workers."""
    COUNTER.begin()
    COUNTER.end()
    COUNTER.fetched(99)
    data = build_data(write_set(tmp_path / "set", [8]), workers=workers, batch_size=4)
    assert len(list(data.iterate(0, 2))) == 2
    assert "data_bytes_fetched" not in data.work.figures()


def test_a_run_tells_them_once_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run-dir", str(tmp_path / "run"), "--train.steps", "2", "--data.workers", "1"]
    assert main(["train", "configs/debug_clip.toml", *words]) == 0
    told = capsys.readouterr().err
    assert told.count("waiting for data ") == 1 and "batches ready" in told
    assert "  batch in " in told
