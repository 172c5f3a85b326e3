"""What the phases of a recipe cost, in `summary` and `plan`; its page and its debug recipe."""

import re
import tomllib
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.data.phases import Phase
from mmtrain.models.flops import clip_flops
from mmtrain.models.named import named_model
from mmtrain.settings.decode import decode
from mmtrain.train.config import TrainConfig
from tests.test_readme import blocks

ROOT = Path(__file__).parents[2]
RECIPE = "configs/debug_phases.toml"


def test_patches_that_are_left_out_cost_nothing() -> None:
    """Half of them, about half of the tower."""
    config = named_model("ViT-B-16")
    whole, half = (clip_flops(config, num_patches=num).image for num in (196, 98))
    assert whole == clip_flops(config).image
    assert 0.47 < half / whole < 0.51


def test_summary_and_plan_say_what_each_phase_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each; shares where all lengths are known, hours and price of the whole."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((ROOT / RECIPE).read_text().replace("epochs = 1\n", "samples = 64\n"))
    assert main(["summary", str(recipe)]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("phase ")]
    assert [line.partition(":")[0] for line in told] == ["phase 0", "phase 1", "phase 2"]
    costs = [float(re.search(r"([\d.]+) GFLOPs", line)[1]) for line in told]  # pyright: ignore
    assert costs[0] < costs[1] < costs[2]
    shares = [float(re.search(r"([\d.]+)% of the run", line)[1]) for line in told]  # pyright: ignore
    assert sum(shares) == pytest.approx(100, abs=0.2)
    recipe.write_text(recipe.read_text() + "\n[lock]\nvision = 0\n")
    found = []  # of a locked tower the forward alone
    for command, *more in (["summary"], ["plan", "--world-size", "1"]):
        assert main([command, str(recipe), *more]) == 0
        found.append(re.findall(r"([\d.]+) GFLOPs to train", capsys.readouterr().out))
        locked = [float(one) for one in found[-1]]
        assert all(one < 0.9 * whole for one, whole in zip(locked, costs, strict=True))
    assert list(map(float, found[0])) == pytest.approx(list(map(float, found[1])), rel=0.05)
    words = ["plan", str(recipe), "--world-size", "2", "--gpu", "h100", "--price", "2"]
    assert main([*words, "--train.precision", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "phase 0: images of 16 px, 4 of 4 patches, texts of up to 12 tokens" in out
    assert "phase 1: images of 32 px, 8 of 16 patches, texts of up to 24 tokens" in out
    assert "batch 32 = 2 data-parallel ranks" in out and "batch 16 = 2 data-parallel ranks" in out
    assert re.search(r"all phases: [\d.]*[1-9][\d.e-]* hours, .*, [\d.]*[1-9][\d.e-]* in all", out)
    assert "Muon" not in out and "teacher" not in out
    assert main([*words, "--train.precision", "bf16", "--optim.kind", "muon"]) == 0
    assert "- Muon's products at the peak of bf16" in capsys.readouterr().out
    assert main([*words, "--samples", "5"]) == 2
    assert "--samples 5 contradicts [[train.phase]]" in capsys.readouterr().err


def test_an_epoch_is_as_long_as_data_that_are_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    """So its line says what a sample costs."""
    assert main(["summary", RECIPE]) == 0
    assert "GFLOPs to train on a sample, epochs = 1" in capsys.readouterr().out


def test_the_page_has_phases_that_decode() -> None:
    """And names every key."""
    page = (ROOT / "docs/phases.md").read_text()
    (block,) = blocks(page, "toml")
    tables = tomllib.loads(block)
    assert len(decode(TrainConfig, tables["train"], path="train").phase) == 3
    assert all(f"`{name}`" in page for name in vars(Phase(steps=1)))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("profile", RECIPE, "--steps", "7", "--out", "{out}"),
            "more than the 8 of train.phase[0]",
        ),
        (("data", "bench", RECIPE, "--batches", "9"), "ask for fewer"),
        (("data", "bench", "{long}", "--batches", "3"), "train.phase[0] has 2"),
    ],
)
def test_figures_are_of_one_phase(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    """A table of steps or batches of two kinds would be of neither."""
    long = tmp_path / "long.toml"
    text = (ROOT / RECIPE).read_text().replace("samples = 256\nbatch_size = 32", "steps = 2")
    long.write_text(text)
    given = [word.format(out=tmp_path / "out", long=long) for word in words]
    assert main(given) == 2
    assert told in capsys.readouterr().err
