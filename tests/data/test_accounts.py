"""Each epoch's samples add up while a run trains, and a run whose samples do not is ended."""

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.data.accounts import EpochAccounts, taken_by
from mmtrain.data.batch import BadSample
from mmtrain.data.config import DataConfig
from mmtrain.data.mixture import MixtureSource
from mmtrain.data.numbered import NumberedData
from mmtrain.data.order.batches import RowPlan
from mmtrain.data.row_plan import build_row_plan
from mmtrain.errors import FaultsFound
from tests.data.shard_files import pairs, write_set, write_shard

SIZES = ([40, 31, 30], [9, 14])


def plans(config: DataConfig, world_size: int) -> list[RowPlan]:
    sizes = SIZES[: max(1, len(config.mixture))]
    return [
        build_row_plan(
            config, shard_sizes=sizes, seed=3, batch_size=16, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]


class Ranks:
    """The accounts of ranks that are threads here."""

    def __init__(self, names: Sequence[str], world_size: int) -> None:
        self._values: list[Any] = [None] * world_size
        self._barrier = threading.Barrier(world_size)
        self._pool = ThreadPoolExecutor(world_size)
        sizes = [sum(each) for each in SIZES[: len(names)]]
        self.accounts = [
            EpochAccounts(names, sizes, rank=rank, gather=self._gather)
            for rank in range(world_size)
        ]

    def _gather(self, value: Any) -> list[Any]:
        self._values[value[0]] = value
        self._barrier.wait(10)
        found = list(self._values)
        self._barrier.wait(10)
        return found

    def all(self, action: Callable[[EpochAccounts], Any]) -> list[Any]:
        """What each rank's action gives, or the last error of all, which all raise."""
        futures = [self._pool.submit(action, one) for one in self.accounts]
        errors = [future.exception() for future in futures]
        assert len({str(error) for error in errors}) == 1, errors
        return [future.result() for future in futures]


def two(**options: Any) -> DataConfig:
    sources = (
        MixtureSource(name="a", train="a", weight=0.7),
        MixtureSource(name="b", train="b", weight=0.3),
    )
    return DataConfig(mixture=sources, **options)


CONFIGS = {
    "drop": DataConfig(train="a"),
    "mask": DataConfig(train="a", last="mask"),
    "lanes": DataConfig(train="a", lanes=4),
    "lanes, mask": DataConfig(train="a", lanes=8, last="mask"),
    "mixture": two(mixture_end="repeat"),
    "mixture of lanes": two(mixture_end="repeat", lanes=4),
    "single": two(mixture_end="repeat", mixture_batches="single", lanes=2),
    "to its end": two(mixture_end="drop_source", last="mask"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("world_size", [1, 4])
def test_all_samples_of_epochs_add_up(name: str, world_size: int):
    config = CONFIGS[name]
    each = plans(config, world_size)
    ranks = Ranks([one.name for one in config.sources], world_size)
    batches = 8 if name == "to its end" else 60
    for batch in range(batches):
        for plan, one in zip(each, ranks.accounts, strict=True):
            rows = plan.rows(batch)
            bad = [
                BadSample(key="", shard="", reason="", position=int(position))
                for position, sample in zip(rows.position_B, rows.sample_B, strict=True)
                if sample == 5
            ]
            one.record(taken_by(rows, bad))
        states = ranks.all(EpochAccounts.state_dict)
        ranks.all(lambda one, done=batch + 1: one.settle(each[0], done))
        assert states == [states[0]] * world_size
    found = ranks.accounts[1 % world_size].figures()["epoch_accounts"]
    for table in found.values():
        total = table["delivered"] + table.get("bad", 0) + table.get("dropped", 0)
        assert total == table["indexed"] > 0
    first = next(iter(found.values()))
    assert first["epochs"] == (1 if name == "to its end" else each[0].epochs_done(batches)[0])
    assert first["indexed"] == 101 * first["epochs"]
    assert 0 < first["bad"] <= first["epochs"]
    assert bool(first.get("dropped")) == (name in ("drop", "lanes"))


def lost(batch: int, rank: int) -> tuple[int, int] | None:
    return None if batch == 2 and rank == 1 else (batch, rank)


def twice(batch: int, rank: int) -> tuple[int, int]:
    """As a worker would that begins again: another batch does not come."""
    return (1 if batch == 2 else batch, rank)


def the_same_slice(batch: int, rank: int) -> tuple[int, int]:
    return batch, 0


@pytest.mark.parametrize("fault", [lost, twice, the_same_slice])
@pytest.mark.parametrize("name", ["drop", "lanes, mask", "mixture"])
def test_what_does_not_add_up_is_told_by_all(name: str, fault: Any):
    config = CONFIGS[name]
    each = plans(config, 2)
    ranks = Ranks([one.name for one in config.sources], 2)
    with pytest.raises(FaultsFound) as told:
        for batch in range(60):
            for number, one in enumerate(ranks.accounts):
                if (given := fault(batch, number)) is not None:
                    one.record(taken_by(each[given[1]].rows(given[0]), ()))
            ranks.all(lambda one, done=batch + 1: one.settle(each[0], done))
    where = "data.mixture[" if name == "mixture" else "data.train: of 101 samples"
    assert str(told.value).startswith(where) and "epoch 0 had " in str(told.value)
    if name == "drop":
        why = "do not add up" if fault is lost else "some came twice, and others not at all"
        assert why in str(told.value)


def test_a_run_settles_its_epochs_also_after_a_resume(tmp_path: Path):
    """19 samples, one of them bad, in batches of 4."""
    samples = pairs(0, 19)
    samples[7] = ("00007", {"jpg": b"no image", "txt": "picture 7"})
    write_shard(tmp_path / "0.tar", samples)
    run, again = tmp_path / "run", tmp_path / "again"
    words = ["configs/debug_clip.toml", "--data.train", str(tmp_path / "0.tar"),
             "--train.batch_size", "4", "--train.steps", "10", "--train.checkpoint_every", "3",
             "--data.max_bad_fraction", "0.5", "--train.keep_checkpoints", "9"]  # fmt: skip
    assert main(["train", *words, "--run-dir", str(run)]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "epoch_accounts" not in rows[2]
    assert [row["epoch_accounts"]["data"]["epochs"] for row in rows[3:]] == [1] * 4 + [2] * 3
    last = rows[-1]["epoch_accounts"]["data"]
    assert last["indexed"] == 38 and last["dropped"] == 6
    assert last["delivered"] == 32 - last.get("bad", 0)
    page = (run / "report.html").read_text()
    assert "Epochs over" in page and '<td class="num">38</td>' in page
    shutil.copytree(run, again)
    for path in (again / "checkpoints").iterdir():
        if int(path.name[-8:]) > 6:
            shutil.rmtree(path)
    assert main(["train", "--resume", "--run-dir", str(again)]) == 0
    more = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert [r.get("epoch_accounts") for r in more] == [r.get("epoch_accounts") for r in rows]


def test_a_run_whose_samples_do_not_add_up_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    train = write_set(tmp_path / "set", (10, 9))
    iterate = NumberedData.iterate

    def one_twice(data: NumberedData[Any], start: int, stop: int):
        before = None
        for number, batch in enumerate(iterate(data, start, stop)):
            yield before if number == 1 else batch
            before = batch

    monkeypatch.setattr(NumberedData, "iterate", one_twice)
    words = ["configs/debug_clip.toml", "--data.train", train, "--train.batch_size", "4"]
    words += ["--train.steps", "6", "--run-dir", str(tmp_path / "run")]
    assert main(["train", *words]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "data.train: of 19 samples indexed, epoch 0 had 16 delivered + 0 bad + 3 dropped" in told
    assert "some came twice, and others not at all" in told
