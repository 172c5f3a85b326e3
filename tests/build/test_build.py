"""How a recipe is composed: what the parts are told, what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmtrain.build.run import build_run
from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.models import TextTower
from mmtrain.optim.muon import Muon
from mmtrain.parallel.mesh import Layout
from mmtrain.recipe import load_recipe

RECIPE = Path("configs/debug_clip.toml")
AXES = ("pp", "dp_replicate", "dp_shard", "tp")


def losses(run_dir: Path, *words: str) -> list[float]:
    """Train the debug recipe for a few steps in fp64 -> its losses."""
    words = ("--train.steps", "4", "--train.log_every", "1", "--train.precision", "fp64", *words)
    assert main(["train", str(RECIPE), "--run-dir", str(run_dir), *words]) == 0
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_text_groups_train_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, seen = losses(tmp_path / "whole"), []
    inner = TextTower._blocks_and_head

    def spy(self, x, length_B, keep_BL2):
        seen.append(x.size(1))
        return inner(self, x, length_B, keep_BL2)

    monkeypatch.setattr(TextTower, "_blocks_and_head", spy)
    grouped = losses(tmp_path / "grouped", "--train.text_groups", "3")
    assert grouped == pytest.approx(whole, rel=1e-9)
    assert min(seen) < max(seen), "no group was cut shorter"


@pytest.mark.parametrize("axis", ["pp", "tp", "dp_shard"])
def test_text_groups_need_a_whole_tower(axis: str, tmp_path: Path, monkeypatch):
    recipe = load_recipe(RECIPE, ["--train.text_groups", "2", "--run.dir", str(tmp_path)])
    layout = Layout(device=torch.device("cpu"), config=recipe.parallel)
    # A mesh of two ranks along the axis, without ranks.
    sizes = {name: SimpleNamespace(size=lambda n=name: 1 + (n == axis)) for name in AXES}
    object.__setattr__(layout, "mesh", sizes)
    monkeypatch.setattr(Layout, "size", lambda *_: 1)
    monkeypatch.setattr(Layout, "rank", lambda *_: 0)
    with pytest.raises(UsageError, match=f"parallel.{axis} = 2; set train.text_groups = 1"):
        build_run(recipe, layout)


def test_text_groups_of_a_tower_that_sees_its_padding_are_refused(tmp_path: Path, capsys):
    words = ["--model.text.pool", "last", "--train.text_groups", "2"]
    assert main(["train", str(RECIPE), "--run-dir", str(tmp_path / "run"), *words]) == 2
    assert "this text tower sees its padding" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("precision", "amx", "expected"),
    [("bf16", True, True), ("bf16", False, False), ("fp32", True, False), ("fp16", True, False)],
)
def test_muon_multiplies_as_the_run_does(
    precision: str, amx: bool, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    words = ["--train.precision", precision, "--optim.kind", "muon", "--run.dir", str(tmp_path)]
    recipe = load_recipe(RECIPE, words)
    run = build_run(recipe, Layout(device=torch.device("cpu"), config=recipe.parallel))
    muon = next(each for each in run.state.optimizers.optimizers if isinstance(each, Muon))
    assert muon._bf16_products == expected
