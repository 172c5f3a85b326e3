"""An open_clip training gone on with here: the next update is the one that it would have made."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.interop.open_clip import from_open_clip
from mmtrain.interop.open_clip_training import read_open_clip_training
from mmtrain.loading import read_package
from mmtrain.models import Clip
from mmtrain.models.parameters import no_decay_names
from mmtrain.models.vision_config import CLIP_MEAN, CLIP_STD
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.optimizer import build_optimizers
from tests.interop.peers import tiny_open_clip
from tests.interop.test_open_clip import build_theirs

LR, BETAS, EPS = 1e-3, (0.9, 0.98), 1e-6
DEBUG = "mmtrain/demo/debug/train.tar"


def their_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """The groups of open_clip_train/main.py."""

    def spared(name: str, x: Tensor) -> bool:
        return x.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    named = list(model.named_parameters())
    groups = [
        {"params": [x for name, x in named if spared(name, x)], "weight_decay": 0.0},
        {"params": [x for name, x in named if not spared(name, x)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)


def loss_of(image_BE: Tensor, text_BE: Tensor, scale: Tensor) -> Tensor:
    logits = scale.exp() * F.normalize(image_BE, dim=-1) @ F.normalize(text_BE, dim=-1).T
    target = torch.arange(len(logits))
    return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)


def tokens(context: int, eot: int) -> Tensor:
    """Four texts that end at different places."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(1, eot, (4, context), generator=generator)
    for row, length in enumerate((5, 9, 12, context)):
        ids_BT[row, length - 1 :] = 0
        ids_BT[row, length - 1] = eot
    return ids_BT


def train(folder: Path, model_cfg: dict[str, Any]) -> tuple[Path, nn.Module, Any]:
    """Three updates of theirs, saved as open_clip saves them -> the file, and their next update."""
    theirs = build_theirs(model_cfg).train()
    optimizer = their_optimizer(theirs)
    side, generator = model_cfg["vision_cfg"]["image_size"], torch.Generator().manual_seed(0)
    bytes_ = torch.randint(0, 256, (4, 3, side, side), generator=generator, dtype=torch.uint8)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    pixels = (bytes_ / 255 - mean) / std
    ids_BT = tokens(model_cfg["text_cfg"]["context_length"], 49407)

    def update() -> None:
        optimizer.zero_grad()
        image, text = theirs.encode_image(pixels), theirs.encode_text(ids_BT)  # pyright: ignore
        loss_of(image, text, theirs.logit_scale).backward()  # pyright: ignore
        optimizer.step()

    for _ in range(3):
        update()
    path = folder / "checkpoints" / "epoch_1.pt"
    path.parent.mkdir(parents=True)
    content = {
        "epoch": 1,
        "name": "x",
        "state_dict": {f"module.{name}": x.clone() for name, x in theirs.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 1.0},
    }
    torch.save(content, path)
    config = {"model_cfg": model_cfg, "preprocess_cfg": {}}
    (path.parent / "open_clip_config.json").write_text(json.dumps(config))
    update()
    return path, theirs, (bytes_, ids_BT)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_the_next_update_is_theirs(tmp_path: Path, quick_gelu: bool) -> None:
    model_cfg = tiny_open_clip(quick_gelu=quick_gelu)
    path, theirs, (bytes_, ids_BT) = train(tmp_path, model_cfg)
    package = read_package(path)
    ours = Clip(package.config)
    ours.load_state_dict(package.tensors)
    optimizers = build_optimizers(
        ours.named_parameters(),
        OptimConfig(lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0),
        no_decay=no_decay_names(ours),
        hidden_matrices=set(),
    )
    training = read_open_clip_training(path)
    assert (training.epoch, training.steps) == (1, 3.0) and "scaler" in training.left
    taken = optimizers.load_moments(training.moments, steps=training.steps)
    assert taken == {name for name, _ in ours.named_parameters()}
    loss_of(ours.encode_image(bytes_), ours.encode_text(ids_BT), ours.logit_scale).backward()
    optimizers.step()
    wanted = from_open_clip(model_cfg, dict(theirs.state_dict()))[1]
    for name, x in ours.state_dict().items():
        # Without the moments the first update of AdamW is the learning rate itself, 1e-3.
        assert torch.allclose(x, wanted[name], atol=2e-5), name


def test_a_run_goes_on_and_says_what_it_took(tmp_path: Path, capsys) -> None:
    """The step follows the epoch; another image size leaves the positions without moments."""
    path, _, _ = train(tmp_path / "theirs", tiny_open_clip())
    words = ["train", "configs/debug_clip.toml", "--run-dir", str(tmp_path / "run")]
    recipe = tmp_path / "go_on.toml"
    recipe.write_text(
        f'[run]\ndir = "{tmp_path}/run"\n[data]\ntrain = "{DEBUG}"\n[model]\ninit = "{path}"\n'
        "init_training = true\n[model.vision]\nimage_size = 64\n"
        "[train]\nepochs = 2\nbatch_size = 32\n"
    )
    words[1] = str(recipe)
    assert main(words) == 0
    told = capsys.readouterr().err
    assert "(step 3); epoch 1 begins, step 2 of this recipe" in told
    assert "not taken, the recipe's hold: lr, betas, eps, weight_decay, scaler" in told
    assert "without moments: vision.embed.positional_embedding" in told
    steps = [
        json.loads(x)["step"] for x in (tmp_path / "run/metrics.jsonl").read_text().split("\n") if x
    ]
    assert min(steps) > 2 and max(steps) == 4
    assert main([*words, "--train.epochs", "1", "--run-dir", str(tmp_path / "two")]) == 2
    assert "is of epoch 1, step 2 here, and this run has 2 steps" in capsys.readouterr().err
    assert (
        main(
            [
                *words,
                "--model.init",
                "none",
                "--model.name",
                "ViT-S-32",
                "--run-dir",
                str(tmp_path / "three"),
            ]
        )
        == 2
    )
    assert "init_training = true goes on with model.init" in capsys.readouterr().err


def test_what_is_no_such_training_is_one_line(tmp_path: Path) -> None:
    path, _, _ = train(tmp_path, tiny_open_clip())
    whole = torch.load(path, weights_only=True)
    groups = whole["optimizer"]["param_groups"]
    wrong = {"exp_avg": torch.ones(1), "exp_avg_sq": torch.ones(1)}
    for change, told in (
        ({"optimizer": None}, "is not AdamW's"),
        ({"optimizer": {"param_groups": groups[:1], "state": {}}}, "its optimizer has groups of"),
        ({"optimizer": {"param_groups": groups, "state": {0: wrong}}}, "are of another shape"),
    ):
        torch.save(whole | change, path)
        with pytest.raises(UsageError, match=told):
            read_open_clip_training(path)
    torch.save(whole["state_dict"], path)
    with pytest.raises(UsageError, match="is no checkpoint of open_clip's training"):
        read_open_clip_training(path)
