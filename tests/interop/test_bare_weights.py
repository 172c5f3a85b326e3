"""A file of weights alone: its architecture is named, on the command line or in a recipe."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mmtrain
import mmtrain.commands.summary  # before names are added, which it would keep
from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.interop import bare_weights
from mmtrain.interop.hf_clip import to_hf
from mmtrain.interop.open_clip import to_open_clip
from mmtrain.interop.open_clip_config import config_from_open_clip
from mmtrain.loading import save_model
from mmtrain.models import Clip, named
from mmtrain.recipe import load_recipe
from tests.interop.peers import ROOT, randomise, tiny_open_clip

CFG = tiny_open_clip(text_cfg={"context_length": 77})
RECIPE = ROOT / "configs" / "debug.toml"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Clip:
    """A small architecture that has a name, and another."""
    config = config_from_open_clip(CFG)
    wide = config_from_open_clip(CFG | {"vision_cfg": CFG["vision_cfg"] | {"width": 96}})
    quick = config_from_open_clip(CFG | {"quick_gelu": True})
    builders = {"Tiny": lambda: config, "Wide": lambda: wide, "Quick": lambda: quick}
    monkeypatch.setattr(named, "_BUILDERS", named._BUILDERS | builders)
    for module in (named, bare_weights):
        monkeypatch.setattr(module, "MODEL_NAMES", (*named.MODEL_NAMES, *builders))
    return randomise(Clip(config).init_weights(0))  # pyright: ignore[reportReturnType]


def write(path: Path, model: Clip, form: str) -> Path:
    state = {name: x.detach() for name, x in model.state_dict().items()}
    if form == "open_clip":
        state = to_open_clip(model.config, state)[1]
    elif form == "hf":
        state = to_hf(model.config, state)[1]
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 1, "state_dict": {f"module.{n}": x for n, x in state.items()}}, path)
    return path


@pytest.mark.parametrize("form", ["ours", "open_clip", "hf"])
@pytest.mark.parametrize("suffix", ["pt", "bin", "safetensors"])
def test_a_named_file_is_read_in_every_form(tmp_path, tiny, form, suffix):
    path = write(tmp_path / f"weights.{suffix}", tiny, form)
    model, preprocess, tokenizer = mmtrain.load(path, architecture="Tiny")
    for name, x in tiny.state_dict().items():
        assert torch.equal(model.state_dict()[name], x), name
    assert preprocess.config.image_size == 32 and tokenizer.context_length == 77


def test_every_command_takes_a_name(tmp_path, tiny, capsys):
    path = str(write(tmp_path / "weights.pt", tiny, "open_clip"))
    shards = str(ROOT / "mmtrain/demo/debug/train.tar")
    named_one = ["--architecture", "Tiny"]
    data = ["--model", path, "--data", shards]
    for words in (
        ["export", path, "--out", str(tmp_path / "export"), "--format", "hf"],
        ["convert", path, str(tmp_path / "convert")],
        ["summary", path],
        ["embed", *data, "--out", str(tmp_path / "embedded")],
        ["eval", "retrieval", *data, "--out", str(tmp_path / "r.json")],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "--architecture" in said and len(said.splitlines()) == 1, said
        assert main([*words, *named_one]) == 0
        capsys.readouterr()
    direct = mmtrain.load(path, architecture="Tiny")[0].state_dict()
    again = mmtrain.load(tmp_path / "convert")[0].state_dict()
    assert all(torch.equal(again[name], x) for name, x in direct.items())


def test_weights_of_another_architecture_are_refused_with_both_shapes(tmp_path, tiny, capsys):
    path = str(write(tmp_path / "weights.pt", tiny, "open_clip"))
    config = tmp_path / "beside" / "open_clip_config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"model_cfg": CFG}))
    beside = str(write(config.parent / "weights.pt", tiny, "open_clip"))
    folder = tmp_path / "ours"
    tokenizer = build_tokenizer(TokenizerConfig())
    preprocess = PreprocessConfig(image_size=32)
    save_model(folder, model=tiny, tokenizer=tokenizer, preprocess=preprocess)
    for model, name, parts in (
        (path, "Wide", (r"visual.conv1.weight [48, 3, 8, 8]", "[96, 3, 8, 8]")),
        (beside, "Wide", ("vision.embed.class_embedding is [48]", "is [96]")),
        (str(folder), "Wide", ("vision.embed.class_embedding is [48]", "is [96]")),
        (str(folder), "Quick", ('activation = "gelu"',)),
        (path, "Tinny", ('architecture = "Tinny" is unknown', "did you mean Tiny?")),
        (path, "ViT-B-16-SigLIP", ("ViT-B-16-SigLIP",)),
    ):
        words = ["summary", model, "--architecture", name]
        assert main(words) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and all(part in said for part in parts), said
    for model in (beside, str(folder)):  # the same said twice is no contradiction
        assert main(["summary", model, "--architecture", "Tiny"]) == 0
    for model in ("Tiny", str(RECIPE)):
        assert main(["summary", model, "--architecture", "Tiny"]) == 2
        assert "is for a CLIP's weights" in capsys.readouterr().err


def test_a_recipe_names_the_weights_architecture(tmp_path, tiny, capsys):
    """A run starts from them, and its own record starts from them again."""
    path = str(write(tmp_path / "weights.pt", tiny, "open_clip"))
    run = tmp_path / "run"
    recipe = tmp_path / "recipe.toml"
    shards = str(ROOT / "mmtrain/demo/debug/train.tar")
    recipe.write_text(
        f'[run]\ndir = "{run}"\n[data]\ntrain = "{shards}"\n'
        f'[model]\nname = "Tiny"\ninit = "{path}"\n'
        "[train]\nsteps = 2\nbatch_size = 4\n[optim]\nlr = 1e-9\nwarmup_steps = 1\n"
    )
    read = load_recipe(recipe)
    assert read.model.vision == tiny.config.vision
    assert main(["train", str(recipe)]) == 0
    trained = mmtrain.load(run)[0].state_dict()
    for name, x in tiny.state_dict().items():
        torch.testing.assert_close(trained[name], x, atol=1e-5, rtol=0)
    assert load_recipe(run / "recipe.toml").model.vision == tiny.config.vision
    for name, said in (("Wide", "[96, 3, 8, 8]"), ("Tinny", 'model.name = "Tinny" is unknown')):
        assert main(["train", str(recipe), "--model.name", name, "--run-dir", str(run) + "2"]) == 2
        assert said in capsys.readouterr().err
