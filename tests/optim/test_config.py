"""OptimConfig refuses what makes no sense, naming the key."""

import pytest

from mmtrain.optim.config import OptimConfig


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"lr": 0.0}, "lr = 0.0"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"layer_decay": 1.5}, "layer_decay"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"warmup_steps": 10, "warmup_fraction": 0.1}, "warmup_fraction"),
        ({"min_lr_fraction": 1.0}, "min_lr_fraction"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"kind": "muon", "muon_lr": -1.0}, "muon_lr"),
    ],
)
def test_out_of_range(settings, key):
    with pytest.raises(ValueError, match=key):
        OptimConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"muon_lr": 0.1}, 'kind = "muon"'),
        ({"decay_fraction": 0.5}, 'schedule = "wsd"'),
        ({"schedule": "constant", "min_lr_fraction": 0.1}, "choose another schedule"),
    ],
)
def test_setting_without_effect(settings, remedy):
    with pytest.raises(ValueError, match=f"has no effect.*{remedy}"):
        OptimConfig(**settings)


def test_all_of_muons_settings_are_told_at_once():
    told = r"^muon_lr = 0.1, muon_momentum = 0.5 have no effect; set kind = .muon. or remove them$"
    with pytest.raises(ValueError, match=told):
        OptimConfig(muon_lr=0.1, muon_momentum=0.5)
