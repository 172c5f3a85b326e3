"""Towers that are a trunk: open_clip's features, its tensors back, a life in the commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmtrain.cli import main
from mmtrain.interop.open_clip import from_open_clip, to_open_clip
from mmtrain.interop.openai_files import cfg_of_openai
from mmtrain.loading import load
from mmtrain.models import Clip
from tests.interop.peers import (
    assert_same_features,
    assert_same_tensors,
    randomise,
    tiny_open_clip,
    unit,
)
from tests.interop.test_open_clip import build_ours, inputs

DATA = "mmtrain/demo/debug/train.tar"
RESNET: dict[str, Any] = {
    "image_size": 64,
    "layers": [1, 2, 1, 1],
    "width": 16,
    "patch_size": None,
    "head_width": 32,
}


def resnet_cfg(**changes: Any) -> dict[str, Any]:
    return tiny_open_clip() | {"vision_cfg": RESNET | changes}


def build_theirs(model_cfg: dict[str, Any]) -> torch.nn.Module:
    """Random weights and statistics."""
    from open_clip.model import CLIP, CustomTextCLIP

    fields = json.loads(json.dumps(model_cfg))
    kind = CustomTextCLIP if fields.pop("custom_text", False) else CLIP
    torch.manual_seed(0)
    model = randomise(kind(**fields))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


def write_folder(folder: Path, model_cfg: dict[str, Any]) -> torch.nn.Module:
    """In open_clip's form."""
    model = build_theirs(model_cfg)
    folder.mkdir()
    tensors = {name: x.clone() for name, x in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    content = {"model_cfg": model_cfg, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return model


@pytest.mark.parametrize(
    "model_cfg",
    [
        resnet_cfg(),
        resnet_cfg(image_size=96, layers=[2, 1, 1, 2], width=20, head_width=64),
        resnet_cfg() | {"quick_gelu": True, "custom_text": True},
    ],
    ids=["plain", "another shape", "quick_gelu"],
)
@torch.no_grad()
def test_a_resnet_is_open_clips_and_comes_back(model_cfg):
    theirs = build_theirs(model_cfg)
    config, tensors = from_open_clip(model_cfg, theirs.state_dict())
    ours = build_ours(config, tensors)
    pixels, normalised, tokens = inputs(config.vision.image_size, config.text.context_length)
    assert_same_features(ours.encode_image(pixels), unit(theirs.encode_image(normalised)))
    assert_same_features(ours.encode_text(tokens), unit(theirs.encode_text(tokens)))
    custom = model_cfg.get("custom_text", False)
    back_cfg, back = to_open_clip(config, tensors, custom_text=custom)
    assert_same_tensors(back, theirs.state_dict())
    assert from_open_clip(back_cfg, back)[0] == config


def test_the_shapes_of_openais_files_say_which_resnet_it_is():
    model_cfg = resnet_cfg(image_size=96, head_width=64)
    model_cfg["text_cfg"] |= {"width": 64, "heads": 1}
    tensors = build_theirs(model_cfg).state_dict()
    config, _ = from_open_clip(model_cfg | {"quick_gelu": True}, dict(tensors))
    told = cfg_of_openai(dict(tensors), source="RN.pt")
    assert from_open_clip(told, dict(tensors))[0] == config


@torch.no_grad()
def test_statistics_rest_in_training_and_rows_do_not_hang_on_their_batch():
    """Also where a lock or an adapter says what trains."""
    from mmtrain.models.parameters import lock_tower
    from mmtrain.peft.freeze import freeze_all_but

    config, tensors = from_open_clip(resnet_cfg(), build_theirs(resnet_cfg()).state_dict())
    model = build_ours(config, tensors).train()
    pixels = inputs(64, 24)[0]
    whole = model.encode_image(pixels)
    assert torch.equal(model.encode_image(pixels), whole)
    torch.testing.assert_close(model.encode_image(pixels[:1]), whole[:1], rtol=0, atol=1e-6)
    assert_same_tensors(dict(model.state_dict()), tensors)

    def resting() -> set[str]:
        return {n for n, p in model.vision.named_parameters() if not p.requires_grad}

    statistics = {n for n in dict(model.vision.named_parameters()) if ".running_" in n}
    assert len(statistics) == 44 and resting() == statistics
    lock_tower(model.vision, unlocked_layers=9)
    freeze_all_but(model, learned="vision.", also_train=())
    assert resting() == statistics
    lock_tower(model.vision, unlocked_layers=1)
    assert set(dict(model.vision.named_parameters())) - resting() == {
        "head.projection.weight",
        "head.projection.bias",
    }


def test_initial_weights_are_of_the_seed_alone():
    config, _ = from_open_clip(resnet_cfg(), build_theirs(resnet_cfg()).state_dict())
    one, two, other = (dict(Clip(config).init_weights(s).state_dict()) for s in (1, 1, 2))
    assert_same_tensors(one, two)
    name = "vision.embed.trunk.layer1.0.conv2.weight"
    assert not torch.equal(one[name], other[name])


RECIPE = f"""
[data]
train = "{DATA}"
workers = 0
captions = {{ txt = 1.0 }}
[train]
steps = 4
batch_size = 16
microbatches = 2
checkpoint_every = 2
[optim]
lr = 1e-3
schedule = "constant"
[[eval.retrieval]]
name = "captions"
data = "{DATA}"
"""


def train(tmp_path: Path, init: Path, *words: str, run: str = "run", status: int = 0) -> Path:
    """Fine-tune the model of a folder."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    start = ["train", str(recipe), "--run-dir", str(tmp_path / run), "--model.init", str(init)]
    assert main([*start, *words]) == status
    return tmp_path / run


def live_through_the_commands(tmp_path: Path, model_cfg: dict[str, Any]) -> None:
    """Evaluate, fine-tune, go on with a part, export, and be read by open_clip."""
    from open_clip import create_model

    folder = tmp_path / "theirs"
    theirs = write_folder(folder, model_cfg)
    run = train(tmp_path, folder)
    tuned, start = load(run)[0].state_dict(), load(folder)[0].state_dict()
    rests = {name for name, x in tuned.items() if torch.equal(start[name], x)}
    assert {n for n in tuned if ".running_" in n} <= rests
    assert not any(n.endswith(("conv1.weight", "down.weight", "projection.weight")) for n in rests)

    words = ("--train.steps", "2")
    part = train(tmp_path, folder, *words, run="part")
    train(tmp_path, folder, "--resume-with-changes", run="part")
    assert_same_tensors(load(part)[0].state_dict(), tuned)

    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--format", "open-clip"]) == 0
    back = create_model(f"local-dir:{out}").eval()
    # Texts of ours are written as open_clip's plain CLIP has them, also where they came otherwise.
    towers = ({n for n in x.state_dict() if n.startswith("visual.")} for x in (theirs, back))
    assert next(towers) == next(towers)
    assert_folder_is(out, back)
    words = ["--model", str(out), "--data", DATA, "--out", str(tmp_path / "told.json")]
    assert main(["eval", "retrieval", *words]) == 0
    told, own = (
        json.loads((p).read_text()) for p in (tmp_path / "told.json", run / "eval/captions.json")
    )
    recalls = [key for key in told if "recall" in key]
    assert recalls and all(told[key] == own[key] for key in recalls)


@torch.no_grad()
def assert_folder_is(folder: Path, theirs: torch.nn.Module) -> None:
    """The same features of images and texts as open_clip's model."""
    ours, preprocess, tokenizer = load(folder)
    pixels, normalised, _ = inputs(preprocess.config.image_size, 8)
    assert_same_features(ours.encode_image(pixels), unit(theirs.encode_image(normalised)))
    tokens = tokenizer(["a red apple", "two cats"])
    assert_same_features(ours.encode_text(tokens), unit(theirs.encode_text(tokens)))


@pytest.mark.slow
def test_a_resnet_lives_through_the_commands(tmp_path):
    live_through_the_commands(tmp_path, resnet_cfg())


TIMM: dict[str, Any] = {
    "timm_model_name": "test_byobnet",
    "timm_pool": "avg",
    "timm_proj": None,
    "timm_drop_path": 0.1,
    "timm_model_pretrained": False,
    "image_size": 64,
}
"""Tiny, of convolutions and batch norms, with its own classifier as the map."""


def timm_cfg(**changes: Any) -> dict[str, Any]:
    return tiny_open_clip(custom_text=True) | {"vision_cfg": TIMM | changes}


@pytest.mark.slow
def test_a_tower_of_timm_lives_through_the_commands(tmp_path):
    live_through_the_commands(tmp_path, timm_cfg())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
        {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "mlp"},
        {"timm_model_name": "test_efficientnet", "timm_proj": "linear", "timm_proj_bias": True},
    ],
    ids=["classifier", "own pool", "two layers", "bias"],
)
def test_a_tower_of_timm_is_open_clips_and_comes_back(changes, tmp_path):
    model_cfg = timm_cfg(**changes)
    theirs = write_folder(tmp_path / "theirs", model_cfg)
    assert_folder_is(tmp_path / "theirs", theirs)
    config, tensors = from_open_clip(model_cfg, dict(theirs.state_dict()))
    back_cfg, back = to_open_clip(config, tensors, custom_text=True)
    counted = {n: torch.zeros_like(x) if "num_batches" in n else x for n, x in back.items()}
    assert_same_tensors(back, counted)
    assert back.keys() == theirs.state_dict().keys()
    assert from_open_clip(back_cfg, back)[0] == config
    assert main(["summary", str(tmp_path / "theirs")]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timm_model_name": "resnet_of_nobody"}, 'timm_model_name = "resnet_of_nobody" is no'),
        ({"timm_pool": "rot_attn"}, 'timm_pool = "rot_attn" is not supported'),
        ({"timm_model_name": "eva02_tiny_patch14_224"}, "takes 224 pixels"),
        ({"timm_colour": 1}, "timm_colour = 1 is unknown"),
    ],
)
def test_what_timm_has_not_is_refused_in_a_line(changes, message, tmp_path, capsys):
    folder = tmp_path / "theirs"
    write_folder(folder, timm_cfg())
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": timm_cfg(**changes)}))
    assert main(["summary", str(folder)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0], told


def test_without_the_library_a_line_names_the_extra(tmp_path, capsys, monkeypatch):
    from mmtrain.models.trunks import config

    write_folder(tmp_path / "theirs", timm_cfg())
    monkeypatch.setattr(config, "find_spec", lambda package: None)
    assert main(["summary", str(tmp_path / "theirs")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and 'timm; pip install "mmtrain[towers]"' in told[0], told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.vision.patch_dropout", "0.5"], "model.vision.patch_dropout = 0.5 has no effect"),
        (["--model.vision.class_token", "true"], "model.vision.class_token = true has no effect"),
        (["--model.vision.transformer.num_layers", "2"], "model.vision.transformer has no effect"),
        (["--lock.vision", "2"], "lock.vision = 2 has no effect on 0 blocks"),
        (["--peft.kind", "lora", "--peft.targets", '["vision.*.q"]'], "peft.targets"),
    ],
)
def test_what_a_trunk_has_not_is_refused_in_a_line(words, message, tmp_path, capsys):
    folder = tmp_path / "theirs"
    write_folder(folder, resnet_cfg())
    train(tmp_path, folder, *words, status=2)
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0], told


def test_other_forms_and_the_plan_refuse_a_trunk_by_name(tmp_path, capsys):
    folder = tmp_path / "theirs"
    write_folder(folder, resnet_cfg())
    for form in ("hf", "timm"):
        assert main(["export", str(folder), "--out", str(tmp_path / "x"), "--format", form]) == 2
        told = capsys.readouterr().err
        assert f'--format {form} cannot express model.vision.trunk.kind = "resnet"' in told
    (tmp_path / "r.toml").write_text(RECIPE + f'[run]\ndir="x"\n[model]\ninit = "{folder}"\n')
    assert main(["plan", str(tmp_path / "r.toml"), "--world-size", "2"]) == 2
    assert "model.vision.trunk (resnet) has none" in capsys.readouterr().err


def test_another_image_size_interpolates_the_places(tmp_path):
    folder = tmp_path / "theirs"
    write_folder(folder, resnet_cfg())
    words = ("--model.vision.image_size", "96", "--optim.lr", "1e-30", "--train.steps", "1")
    run = train(tmp_path, folder, *words)
    before, after = (load(path)[0].state_dict() for path in (folder, run))
    name = "vision.embed.trunk.attnpool.positional_embedding"
    assert (len(before[name]), len(after[name])) == (5, 10)
