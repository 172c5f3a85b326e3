"""An export in timm's form is what timm loads, and what we read again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.interop.timm import read_timm_tower, vision_config_from_timm
from mmtrain.loading import save_model
from mmtrain.models import Clip, ClipConfig, TextConfig, VisionTower
from mmtrain.nn import TransformerConfig
from tests.interop.peers import assert_same_features, randomise, unit
from tests.interop.test_open_clip import inputs
from tests.interop.test_timm import SHAPES, TINY


def save(folder: Path, shape: str, **blocks: object) -> Clip:
    """A CLIP whose image tower is timm's but for the projection that follows it."""
    vision = replace(vision_config_from_timm(TINY | SHAPES[shape]), projection=True)
    vision = replace(vision, transformer=replace(vision.transformer, **blocks))
    tokenizer = build_tokenizer(TokenizerConfig())
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=tokenizer.context_length,
        transformer=TransformerConfig(dim=16, num_layers=1, num_heads=2),
    )
    model = randomise(Clip(ClipConfig(embed_dim=24, vision=vision, text=text)).init_weights(0))
    preprocess = PreprocessConfig(image_size=vision.image_size, resize_mode="squash")
    save_model(folder, model=model, tokenizer=tokenizer, preprocess=preprocess)
    return model


@pytest.mark.parametrize(
    "shape", ["class token", "clip", "siglip", "mean, norm before", "dinov2 registers", "qk norm"]
)
@torch.no_grad()
def test_timm_gives_the_towers_features(shape: str, tmp_path: Path, capsys):
    timm = pytest.importorskip("timm")
    model = save(tmp_path / "ours", shape)
    out = tmp_path / "timm"
    assert not main(["export", str(tmp_path / "ours"), "--out", str(out), "--format", "timm"])
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    config, tensors = read_timm_tower(out)
    tower = VisionTower(config, embed_dim=48).eval()
    tower.load_state_dict(tensors)
    bytes_, normalised, _ = inputs(config.image_size, 8)
    mean, std = theirs.pretrained_cfg["mean"], theirs.pretrained_cfg["std"]
    assert (tuple(mean), tuple(std)) == (model.config.vision.mean, model.config.vision.std)
    pixels = (bytes_ / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert normalised.shape == pixels.shape
    assert_same_features(unit(tower(bytes_)), unit(theirs(pixels)))
    same = model.vision.state_dict()
    assert all(torch.equal(x, same[name]) for name, x in tower.state_dict().items())


@pytest.mark.parametrize(
    ("blocks", "named"), [({"norm_eps": 1e-4}, "norm_eps"), ({"norm": "rms"}, "norm")]
)
def test_what_timm_has_not_is_refused(blocks, named: str, tmp_path: Path, capsys):
    save(tmp_path / "ours", "class token", **blocks)
    out = tmp_path / "timm"
    status = main(["export", str(tmp_path / "ours"), "--out", str(out), "--format", "timm"])
    error = capsys.readouterr().err
    assert status == 2 and named in error and error.count("\n") == 1 and not out.exists()


def test_the_image_is_cut_as_ours(tmp_path: Path):
    save(tmp_path / "ours", "class token")
    main(["convert", str(tmp_path / "ours"), str(tmp_path / "timm"), "--format", "timm"])
    cut = json.loads((tmp_path / "timm/config.json").read_text())["pretrained_cfg"]
    assert (cut["crop_mode"], cut["crop_pct"], cut["interpolation"]) == ("squash", 1.0, "bicubic")
