"""model.vision_init: a CLIP whose image tower is one that timm wrote."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

import mmtrain
from mmtrain.cli import main
from mmtrain.interop.timm import read_timm_tower

RECIPE = """
[run]
dir = "{folder}/run"
[data]
train = "mmtrain/demo/debug/train.tar"
[tokenizer]
kind = "sentencepiece"
path = "mmtrain/demo/debug/sentencepiece.model"
context_length = 16
[model]
vision_init = "{folder}/tower"
embed_dim = 24
[model.text.transformer]
dim = 32
num_layers = 1
num_heads = 2
mask = "causal"
[lock]
vision = 1
[train]
steps = 2
batch_size = 8
"""


@pytest.mark.slow
def test_a_timm_tower_is_trained_into_a_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Locked, it keeps timm's weights bit for bit; its projection learns; another size fits."""
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    args = {"img_size": 32}
    save_for_hf(theirs, tmp_path / "tower", model_args=args, safe_serialization=True)
    path = tmp_path / "tower/config.json"
    content = json.loads(path.read_text())
    content["pretrained_cfg"]["input_size"] = [3, 32, 32]
    path.write_text(json.dumps(content))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(folder=tmp_path))
    assert main(["train", str(recipe)]) == 0
    model, preprocess, _ = mmtrain.load(tmp_path / "run")
    config, tensors = read_timm_tower(tmp_path / "tower")
    assert model.config.vision.mean == config.mean == (0.5, 0.5, 0.5)
    found = model.vision.state_dict()
    assert found["head.projection.weight"].shape == (24, 192)
    frozen = [name for name in tensors if not name.startswith("head.")]
    assert frozen and all(torch.equal(found[name], tensors[name]) for name in frozen)
    larger = ["--model.vision.image_size", "64", "--run-dir", str(tmp_path / "larger")]
    assert main(["train", str(recipe), *larger]) == 0
    assert mmtrain.load(tmp_path / "larger")[1].config.image_size == 64
    assert preprocess.config.image_size == 32
    capsys.readouterr()
    for words, told in (
        (("--model.vision_init", str(tmp_path / "none")), "model.vision_init = .*none/config.json"),
        (("--model.vision.transformer.num_layers", "3"), "tensors of the model differ"),
        (("--model.init", str(tmp_path / "run")), "model.init brings an image tower, and so does"),
    ):
        assert main(["train", str(recipe), "--run-dir", str(tmp_path / "no"), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(told, line), line
