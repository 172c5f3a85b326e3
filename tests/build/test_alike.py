"""Ranks that would train something else are refused, before the first step."""

from pathlib import Path
from typing import Any

import pytest

from mmtrain.build import alike
from mmtrain.build.alike import OF_A_MACHINE, refuse_other_data, refuse_other_recipes
from mmtrain.errors import UsageError
from mmtrain.recipe import TrainRecipe, load_recipe
from mmtrain.settings.describe import describe
from tests.data.shard_files import build_data, pairs, write_set, write_shard

RECIPE = Path("configs/debug_clip.toml")


def ranks(monkeypatch: pytest.MonkeyPatch, refuse: Any, *each: Any) -> None:
    """`refuse` as each of some ranks meets it, behind those before."""
    found: list[Any] = []

    def gather(value: Any) -> list[Any]:
        found.append(value)
        return found

    monkeypatch.setattr(alike, "gather", gather)
    for one in each:
        refuse(one)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--optim.lr", "1e-4"],
            r"^optim\.lr = 0\.001 on rank 0, but 0\.0001 on rank 2: all ranks",
        ),
        (["--run.seed", "1"], r"^run\.seed = 0 on rank 0, but 1 on rank 2"),
        (["--train.log_every", "2"], r"^train\.log_every = 1 .* but 2 on rank 2"),
        (["--run.dir", "elsewhere"], r"^run\.dir = "),
        (
            ["--optim.ema_decay", "0.9"],
            r"^optim\.ema_decay = nothing on rank 0, but 0\.9 on rank 2",
        ),
        (["--data.captions.name", "1"], r"^data\.captions\.name = nothing .* but 1\.0"),
        (["--loss.terms", '[{kind = "matryoshka", dims = [8]}]'], r"^loss\.terms\[0\]\.dims\[0\]"),
    ],
)
def test_another_recipe(monkeypatch: pytest.MonkeyPatch, words: list[str], told: str) -> None:
    """Two ranks with other learning rates trained on, each with weights of its own."""
    same, other = load_recipe(RECIPE), load_recipe(RECIPE, words)
    with pytest.raises(UsageError, match=told):
        ranks(monkeypatch, refuse_other_recipes, same, same, other)


def test_what_a_machine_has_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--data.train", '["/disk/a.tar", "/disk/b.tar"]', "--data.workers", "3"]
    words += ["--data.join", "x.csv", "--data.index_dir", "/disk/index"]
    there = load_recipe(RECIPE, words)
    ranks(monkeypatch, refuse_other_recipes, load_recipe(RECIPE, ["--data.join", "y.csv"]), there)
    assert {key.name for key in describe(TrainRecipe)} >= OF_A_MACHINE


def test_other_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of another day gave the rows of its rank; a like one may lie anywhere."""
    here, there = (write_set(tmp_path / name, (5, 4)) for name in ("here", "there"))
    fewer = write_set(tmp_path / "fewer", (5, 3))
    write_set(tmp_path / "other", (5, 4))
    samples = [(key, {**files, "txt": "another"}) for key, files in pairs(5, 4)]
    write_shard(tmp_path / "other/001.tar", samples)
    refuse = lambda train: refuse_other_data(build_data(train))  # noqa: E731
    ranks(monkeypatch, refuse, here, there)
    for train, told in (
        (fewer, r"^data\.train has 9 samples on rank 0, but 8 on rank 1: all ranks share"),
        (str(tmp_path / "other/*.tar"), r"^data\.train is not the same on rank 0 and on rank 1:"),
    ):
        with pytest.raises(UsageError, match=told):
            ranks(monkeypatch, refuse, here, train)
