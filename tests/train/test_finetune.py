"""Runs that start from another model's weights: model.init, another image size, a locked tower."""

import json
from pathlib import Path

import pytest
import torch

import mmtrain
from mmtrain.cli import main
from mmtrain.models import Clip
from mmtrain.models.transfer import copy_weights
from tests.parallel.tiny_clip import tiny_config

RECIPE = "configs/debug_clip.toml"
FINETUNE = "configs/finetune.toml"
DATA = ("--data.train", "mmtrain/demo/debug/train.tar", "--data.workers", "0")
SHORT = ("--train.precision", "fp32", "--train.batch_size", "16", "--train.steps")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the debug recipe."""
    run = tmp_path_factory.mktemp("finetune") / "pretrained"
    assert main(["train", RECIPE, "--run-dir", str(run), "--train.steps", "4"]) == 0
    return run


def finetune(run: Path, init: Path, *words: str) -> dict[str, torch.Tensor]:
    """Train configs/finetune.toml from `init` -> the exported weights."""
    start = ("--model.init", str(init), "--run-dir", str(run))
    assert main(["train", FINETUNE, *start, *DATA, *words]) == 0
    return mmtrain.load(run)[0].state_dict()


def test_finetune_recipe(pretrained: Path, tmp_path: Path) -> None:
    """It takes architecture, tokenizer and weights over; the locked tower stays bit for bit."""
    before = mmtrain.load(pretrained)[0].state_dict()
    after = finetune(tmp_path / "run", pretrained, *SHORT, "3")
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith("vision.") for name in moved)
    assert mmtrain.load(tmp_path / "run")[2].context_length == 24


def test_finetuning_starts_where_the_model_was(pretrained: Path, tmp_path: Path) -> None:
    """With a learning rate of (almost) nothing the weights are the pretrained ones."""
    words = (*SHORT, "1", "--optim.lr", "1e-30", "--optim.weight_decay", "0")
    after = finetune(tmp_path / "run", pretrained, *words)
    before = mmtrain.load(pretrained)[0].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.slow
def test_resume_of_a_finetuning(pretrained: Path, tmp_path: Path) -> None:
    """A resumed run keeps its own weights and does not start from model.init again."""
    straight = finetune(tmp_path / "straight", pretrained, *SHORT, "4")
    finetune(tmp_path / "cut", pretrained, *SHORT, "2", "--optim.schedule", "constant")
    recipe = (tmp_path / "cut/recipe.toml").read_text()
    assert f'init = "{pretrained}"' in recipe
    resumed = finetune(tmp_path / "cut", pretrained, *SHORT, "4", "--resume-with-changes")
    lines = (tmp_path / "cut/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4 and resumed.keys() == straight.keys()


def test_larger_images_interpolate_the_positions(pretrained: Path, tmp_path: Path) -> None:
    """image_size 48 instead of 32: 6 x 6 patches, and still the same rough function."""
    words = (*SHORT, "1", "--optim.lr", "1e-30", "--model.vision.image_size", "48")
    finetune(tmp_path / "run", pretrained, *words)
    small, large = (mmtrain.load(path) for path in (pretrained, tmp_path / "run"))
    assert large[1].config.image_size == 48
    assert large[0].vision.embed.positional_embedding.size(0) == 37
    images = torch.full((1, 3, 48, 48), 200, dtype=torch.uint8)
    features = small[0].encode_image(images), large[0].encode_image(images)
    # encode_image interpolates on the fly: the stored table is just that.
    assert torch.allclose(features[0], features[1], atol=1e-5)


def test_another_architecture_is_refused(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the first tensor."""
    start = ("--model.init", str(pretrained), "--run-dir", str(tmp_path / "run"))
    words = ("--model.embed_dim", "16", *SHORT, "1")
    assert main(["train", FINETUNE, *start, *DATA, *words]) == 2
    assert "tensors of the model differ" in capsys.readouterr().err


def test_copy_weights_keeps_a_new_bias() -> None:
    """A model without a bias of the logits can start a SigLIP one, and the other way round."""
    from dataclasses import replace

    with_bias = Clip(tiny_config()).init_weights(0)
    without = Clip(replace(tiny_config(), init_logit_bias=None)).init_weights(1)
    copy_weights(without, with_bias)
    assert with_bias.logit_bias is not None and with_bias.logit_bias.item() == -10
    copy_weights(with_bias, without)
    one, two = with_bias.state_dict(), without.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in two)
