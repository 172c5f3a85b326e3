"""Groups, learning rates and state of the optimizers."""

import copy

import pytest
import torch
from torch import nn

from mmtrain.optim.config import OptimConfig
from mmtrain.optim.muon import Muon
from mmtrain.optim.optimizer import build_optimizers


class Tiny(nn.Module):
    """Two linear layers, a position table and a scale."""

    def __init__(self):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(3, 4))
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 4)
        self.logit_scale = nn.Parameter(torch.tensor(2.6))

    def forward(self, x_BTD):
        hidden = self.first(x_BTD + self.positional_embedding).relu()
        return self.second(hidden).square().mean() * self.logit_scale.exp()


NO_DECAY = {"positional_embedding", "first.bias", "second.bias", "logit_scale"}
HIDDEN = {"first.weight", "second.weight"}
LAYERS = {"positional_embedding": (0, 2), "first.weight": (1, 1), "first.bias": (1, 1)}


def build(model, **settings):
    return build_optimizers(
        model.named_parameters(),
        OptimConfig(**settings),
        no_decay=NO_DECAY,
        hidden_matrices=HIDDEN,
        layer_ids=LAYERS,
    )


def group_of(optimizers, parameter):
    """(optimizer, group) that holds a parameter, which must be unique."""
    found = [
        (optimizer, group)
        for optimizer in optimizers.optimizers
        for group in optimizer.param_groups
        if any(p is parameter for p in group["params"])
    ]
    assert len(found) == 1
    return found[0]


def test_decay_groups():
    model = Tiny()
    optimizers = build(model)
    for name, parameter in model.named_parameters():
        _, group = group_of(optimizers, parameter)
        assert group["weight_decay"] == (0.0 if name in NO_DECAY else 0.2), name


def test_muon_takes_the_hidden_matrices():
    model = Tiny()
    optimizers = build(model, kind="muon", muon_weight_decay=0.05)
    for name, parameter in model.named_parameters():
        optimizer, group = group_of(optimizers, parameter)
        assert isinstance(optimizer, Muon) == (name in HIDDEN), name
        assert group["lr"] == (0.02 if name in HIDDEN else 5e-4)
        if name in HIDDEN:
            assert group["weight_decay"] == 0.05


def test_layer_decay_and_schedule():
    model = Tiny()
    optimizers = build(model, kind="muon", layer_decay=0.5)
    optimizers.set_lr(0.1)
    rates = {n: group_of(optimizers, p)[1]["lr"] for n, p in model.named_parameters()}
    assert rates == pytest.approx(
        {
            "positional_embedding": 5e-4 * 0.25 * 0.1,
            "first.weight": 2e-2 * 0.5 * 0.1,
            "first.bias": 5e-4 * 0.5 * 0.1,
            "second.weight": 2e-2 * 0.1,
            "second.bias": 5e-4 * 0.1,
            "logit_scale": 5e-4 * 0.1,
        }
    )
    assert optimizers.lr == 5e-4 * 0.1


def test_frozen_parameters_are_left_out():
    model = Tiny()
    model.first.requires_grad_(False)
    optimizers = build(model)
    assert set(optimizers.state_dict()) == {
        "positional_embedding",
        "second.weight",
        "second.bias",
        "logit_scale",
    }


def train(model, optimizers, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        model(torch.randn(5, 3, 4, generator=generator)).backward()
        optimizers.step()
        optimizers.zero_grad()


def test_adamw_is_torchs():
    """Our eager state changes nothing: bit-equal to AdamW that makes its own."""
    torch.manual_seed(0)
    model = Tiny()
    reference = copy.deepcopy(model)
    decayed = [p for n, p in reference.named_parameters() if n not in NO_DECAY]
    spared = [p for n, p in reference.named_parameters() if n in NO_DECAY]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": spared, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
    train(model, build(model), 3, seed=1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        reference(torch.randn(5, 3, 4, generator=generator)).backward()
        adamw.step()
        adamw.zero_grad()
    for (name, got), want in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(got, want), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_resumes_bit_for_bit(kind):
    torch.manual_seed(0)
    model = Tiny()
    optimizers = build(model, kind=kind)
    train(model, optimizers, 2, seed=1)
    other = copy.deepcopy(model)
    other_optimizers = build(other, kind=kind)
    saved = optimizers.state_dict()
    for name, state in other_optimizers.state_dict().items():
        assert set(state) == set(saved[name])
        for key, tensor in state.items():
            tensor.copy_(saved[name][key])
    train(model, optimizers, 2, seed=2)
    train(other, other_optimizers, 2, seed=2)
    for (name, got), want in zip(other.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(got, want), name


def test_zero_grad_drops_gradients():
    model = Tiny()
    optimizers = build(model)
    model(torch.randn(5, 3, 4)).backward()
    optimizers.zero_grad()
    assert all(p.grad is None for p in model.parameters())
