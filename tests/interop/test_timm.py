"""timm's vision transformers through our tower, alone and inside of open_clip's models."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from mmtrain.errors import UsageError
from mmtrain.interop.canonical import canonical, canonical_vision, differences
from mmtrain.interop.open_clip import from_open_clip, to_open_clip
from mmtrain.interop.open_clip_config import config_from_open_clip, config_to_open_clip
from mmtrain.interop.timm import (
    read_timm_tower,
    vision_config_from_timm,
    vision_from_timm,
    vision_to_timm,
)
from mmtrain.interop.timm_names import TIMM_NAMES, timm_args
from mmtrain.models import VisionTower
from mmtrain.models.named import MODEL_NAMES, named_model
from tests.interop.peers import assert_same_features, assert_same_tensors, randomise, unit
from tests.interop.test_open_clip import build_ours, build_theirs, inputs

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SHAPES: dict[str, dict[str, Any]] = {
    "class token": {},
    "clip": {"pre_norm": True, "norm_eps": 1e-5, "act_layer": "quick_gelu"},
    "mean, norm after": {"global_pool": "avg"},
    "mean, norm before": {"global_pool": "avg", "fc_norm": False, "class_token": False},
    "siglip": {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh"},
    "siglip 384/14": {"global_pool": "map", "class_token": False, "img_size": 38},
    "map beside registers": {"global_pool": "map", "class_token": False, "reg_tokens": 4},
    "dinov2": {"init_values": 0.1},
    "dinov2 registers": {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True},
    "placed registers": {"reg_tokens": 2},
    "class without a place": {"no_embed_class": True, "global_pool": "avg"},
    "qk norm": {"qk_norm": True, "qkv_bias": False, "mlp_ratio": 3.7362},
    "no biases": {"qkv_bias": False, "proj_bias": False},
}


def build_timm(args: dict[str, Any]) -> torch.nn.Module:
    from timm.layers import LayerNorm
    from timm.models.vision_transformer import VisionTransformer

    fields = {"num_classes": 0} | args
    if eps := fields.pop("norm_eps", None):
        fields["norm_layer"] = partial(LayerNorm, eps=eps)
    torch.manual_seed(0)
    return randomise(VisionTransformer(**fields))


def pixels(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    bytes_, normalised, _ = inputs(size, 8)
    return bytes_, normalised


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_features_are_timms_and_tensors_come_back(shape):
    args = TINY | SHAPES[shape]
    theirs = build_timm(args)
    config, tensors = vision_from_timm(args, theirs.state_dict())
    tower = VisionTower(config, embed_dim=48).eval()
    tower.load_state_dict(tensors)
    bytes_, normalised = pixels(args["img_size"])
    assert_same_features(unit(tower(bytes_)), unit(theirs(normalised)))
    back_args, back = vision_to_timm(config, tensors)
    assert_same_tensors(back, theirs.state_dict())
    assert canonical_vision(vision_config_from_timm(back_args)) == canonical_vision(config)
    again = build_timm(back_args)
    again.load_state_dict(back)
    assert torch.equal(again(normalised), theirs(normalised))


def test_a_classifier_is_left_out():
    theirs = build_timm(TINY | {"num_classes": 10})
    _, tensors = vision_from_timm(TINY, theirs.state_dict())
    assert not any("projection" in name for name in tensors)


@torch.no_grad()
def test_a_folder_that_timm_wrote_is_a_tower(tmp_path):
    import timm
    from timm.models import save_for_hf

    theirs = randomise(timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5))
    save_for_hf(theirs, tmp_path, model_args={"img_size": 64}, safe_serialization=True)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["pretrained_cfg"]["input_size"] = [3, 64, 64]
    path.write_text(json.dumps(content))
    config, tensors = read_timm_tower(tmp_path)
    assert config.mean == (0.5, 0.5, 0.5) and config.image_size == 64
    tower = VisionTower(config, embed_dim=192).eval()
    tower.load_state_dict(tensors)
    bytes_, _ = pixels(64)
    want = unit(theirs.forward_head(theirs.forward_features(bytes_ / 127.5 - 1), pre_logits=True))
    assert_same_features(unit(tower(bytes_)), want)


def captured_arguments(monkeypatch) -> dict[str, dict[str, Any]]:
    """What timm's own functions pass for every name, without building a model."""
    import timm
    from timm.models import vision_transformer

    captured: dict[str, dict[str, Any]] = {}

    class Captured(Exception):
        pass

    def capture(name: str, **arguments: Any) -> None:
        captured[name] = arguments
        raise Captured

    monkeypatch.setattr(vision_transformer, "_create_vision_transformer", capture)
    for name in TIMM_NAMES:
        with pytest.raises(Captured):
            timm.create_model(name)
        captured[name]["img_size"] = timm.get_pretrained_cfg(name).input_size[-1]
    return captured


def test_names_stand_for_timms_own_arguments(monkeypatch):
    captured = captured_arguments(monkeypatch)
    assert len(captured) > 80
    for name, arguments in captured.items():
        arguments.pop("pretrained", None)
        fields = {
            key: value
            for key, value in arguments.items()
            if not key.startswith(("pretrained", "cache", "use_naflex"))
        }
        if norm := fields.pop("norm_layer", None):
            fields["norm_eps"] = norm.keywords["eps"]
        ours = vision_config_from_timm(timm_args(name))
        theirs = vision_config_from_timm(fields)
        assert not differences(ours, theirs), (name, differences(ours, theirs))


def test_unknown_names_are_refused_in_one_line():
    for name in ("resnet50", "vit_base_patch16_rope_224", "vit_giant_patch14_dinov2"):
        with pytest.raises(UsageError, match=f'timm_model_name = "{name}" is not supported'):
            timm_args(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_pool": "avgmax"}, 'global_pool = "avgmax" is not supported; we read "token"'),
        ({"scale_attn_norm": True}, "scale_attn_norm = true is not supported"),
        ({"act_layer": "silu"}, 'act_layer = "silu" is not supported'),
        ({"fc_norm": True}, "fc_norm = true"),
        ({"dept": 3}, "dept = 3 is unknown; did you mean depth"),
        ({"num_heads": 5}, "num_heads = 5 must divide dim = 48"),
    ],
)
def test_what_we_cannot_compute_is_refused_by_its_field(changes, message):
    with pytest.raises(UsageError, match=message):
        vision_config_from_timm(TINY | changes)


TEXT = {"context_length": 16, "width": 32, "heads": 4, "layers": 1}
TOWERS: dict[str, dict[str, Any]] = {
    "linear": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token"},
    "linear, exchanged pool": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg"},
    "own classifier": {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "token",
        "timm_proj": None,
    },
    "own classifier, mean": {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "avg",
        "timm_proj": "",
    },
}


def cfg_with(vision_cfg: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {"image_size": 224, "timm_model_pretrained": False} | vision_cfg,
        "text_cfg": TEXT,
    } | fields


@torch.no_grad()
def assert_open_clip_parity(model_cfg: dict[str, Any]) -> None:
    theirs = build_theirs(model_cfg)
    state = theirs.state_dict()
    config, tensors = from_open_clip(model_cfg, state)
    ours = build_ours(config, tensors)
    bytes_, normalised, tokens = inputs(config.vision.image_size, 16)
    assert_same_features(ours.encode_image(bytes_), unit(theirs.encode_image(normalised)))
    assert_same_features(ours.encode_text(tokens), unit(theirs.encode_text(tokens)))
    back_cfg, back = to_open_clip(config, tensors, custom_text=True)
    assert_same_tensors(back, state)
    assert canonical(config_from_open_clip(back_cfg)) == canonical(config)


@pytest.mark.parametrize("tower", TOWERS)
def test_towers_inside_of_open_clip(tower):
    assert_open_clip_parity(cfg_with(TOWERS[tower]))


def test_siglip_inside_of_open_clip():
    """Full size, as open_clip's ViT-B-32-SigLIP2-256 has it: attention pooling, no projection."""
    vision = {
        "image_size": 256,
        "timm_model_name": "vit_base_patch32_siglip_256",
        "timm_pool": "map",
        "timm_proj": "none",
    }
    text = TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    text |= {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
    fields = {"embed_dim": 768, "init_logit_bias": -10, "text_cfg": text}
    assert_open_clip_parity(cfg_with(vision, **fields))


def test_every_siglip_of_open_clips_is_read_and_written():
    """And our names of them are the same shapes."""
    import open_clip

    names = [
        name for name in open_clip.list_models() if name.startswith("ViT-") and "SigLIP" in name
    ]
    assert len(names) >= 25
    for name in names:
        model_cfg = open_clip.get_model_config(name)
        config = config_from_open_clip(model_cfg)
        back = config_to_open_clip(config)
        assert back["vision_cfg"] == model_cfg["vision_cfg"], name
        assert config_from_open_clip(back) == config
        if name in MODEL_NAMES:
            named = named_model(name)
            # Mean and std travel with the preprocess.
            vision = canonical_vision(config.vision, pixels_of=named.vision)
            assert vision == canonical_vision(named.vision), name
            assert canonical(config).text == canonical(named).text, name


@pytest.mark.parametrize(
    ("vision_cfg", "message"),
    [
        ({"timm_model_name": "vit_tiny_patch16_224", "image_size": 256}, "image_size = 256 is not"),
        ({"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "mlp"}, 'timm_proj = "mlp"'),
        ({"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map"}, "needs a tower that has"),
        ({"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "rot_attn"}, "rot_attn"),
    ],
)
def test_towers_that_we_do_not_compute_are_refused(vision_cfg, message):
    with pytest.raises(UsageError, match=message) as caught:
        config_from_open_clip(cfg_with(vision_cfg))
    assert "\n" not in str(caught.value)


def test_a_tower_without_a_name_is_refused_by_its_fields():
    config = named_model("ViT-B-16-SigLIP")
    blocks = replace(config.vision.transformer, num_layers=11)
    odd = replace(config, vision=replace(config.vision, transformer=blocks))
    with pytest.raises(
        UsageError, match=r"--format open-clip cannot express .*model\.vision\.pool"
    ):
        config_to_open_clip(odd)
