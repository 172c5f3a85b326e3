"""Weights' files as people have them: containers, prefixes, averages, in any order."""

import random

import pytest
import torch
from safetensors.torch import save_file

from mmtrain.errors import UsageError
from mmtrain.interop.package import read_tensors
from mmtrain.interop.state_dict import AVERAGES, PREFIXES, WEIGHTS, WRAPPERS

NAMES = ("visual.conv1.weight", "visual.proj", "transformer.resblocks.0.ln_1.bias", "logit_scale")
MODEL = {name: torch.full((2,), float(number)) for number, name in enumerate(NAMES)}
OTHER = {name: x + 100 for name, x in MODEL.items()}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


def assert_read(path, want=MODEL):
    found = read_tensors(path)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], x) for name, x in want.items())


@pytest.mark.parametrize("suffix", ["pt", "bin", "safetensors"])
def test_prefixes_in_any_order(tmp_path, suffix):
    """Up to four prefixes, wrappers within names, up to three containers: always the same model."""
    rng = random.Random(0)
    path = tmp_path / f"weights.{suffix}"
    for _ in range(60):
        prefix = "".join(f"{part}." for part in rng.choices(PREFIXES, k=rng.randint(0, 4)))
        inner = rng.choice(["", *(f"{part}." for part in WRAPPERS)])
        content = {
            prefix + name.replace("resblocks.", f"resblocks.{inner}"): x
            for name, x in MODEL.items()
        }
        if suffix == "safetensors":
            save_file(content, path)
            assert_read(path)
            continue
        for container in rng.choices([*WEIGHTS, *AVERAGES, "my_own"], k=rng.randint(0, 3)):
            content = {container: content, "epoch": 3, "optimizer": OPTIMIZER, "name": "x"}
            if rng.random() < 0.3:
                content["optim_state_dict"] = OPTIMIZER
        torch.save(content, path)
        assert_read(path)


def test_an_average_beside_the_weights_is_said(tmp_path, capsys):
    """The weights are taken, whichever form the average has."""
    path = tmp_path / "weights.pt"
    flat = {f"model.{n}": x for n, x in MODEL.items()} | {f"ema.{n}": x for n, x in OTHER.items()}
    for content, left in (
        ({"model": MODEL, "ema": OTHER}, "ema"),
        ({"ema": OTHER, "model": MODEL, "epoch": 1}, "ema"),
        ({"state_dict": MODEL, "state_dict_ema": {f"module.{n}": x for n, x in OTHER.items()}},
         "state_dict_ema"),
        ({"model_state_dict": MODEL, "model_ema": {"decay": torch.ones(()), "shadow": OTHER}},
         "model_ema"),
        (flat, "ema"),
        ({"state_dict": flat}, "ema"),
    ):  # fmt: skip
        torch.save(content, path)
        assert_read(path)
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line and f"and {left}; " in line and "is taken" in line
    for content in ({"ema": OTHER}, {"ema": {"shadow": OTHER, "decay": 0.9}}):
        torch.save(content, path)
        assert_read(path, OTHER)
        assert not capsys.readouterr().err


def test_torchs_own_average(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    average = torch.optim.swa_utils.AveragedModel(model)
    torch.save(average.state_dict(), tmp_path / "average.pt")
    assert_read(tmp_path / "average.pt", dict(model.state_dict()))


def test_several_models_and_none_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    for content, message in (
        ({"model": MODEL, "state_dict": OTHER}, r"several sets of weights \(model, state_dict\)"),
        ({"generator": MODEL, "critic": OTHER}, r"several sets of weights \(generator, critic\)"),
        ({"ema": MODEL, "shadow": OTHER}, r"several sets of weights \(ema, shadow\)"),
        ({"epoch": 3, "optimizer": OPTIMIZER}, "holds no state dict"),
        ({}, "holds no state dict"),
        ([MODEL], "holds no state dict"),
        ({**MODEL, "epoch": 3}, "epoch is no tensor"),
        ({"a.weight": torch.ones(1), "_orig_mod.a.weight": torch.ones(1)}, "without wrappers"),
    ):
        torch.save(content, path)
        with pytest.raises(UsageError, match=message) as caught:
            read_tensors(path)
        assert "\n" not in str(caught.value)
