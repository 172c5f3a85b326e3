"""The average of the weights."""

import torch
from torch import nn

from mmtrain.optim.ema import Ema


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return {
        "weight": nn.Parameter(torch.randn(3, 4, dtype=dtype)),
        "logit_scale": nn.Parameter(torch.tensor(2.6, dtype=dtype)),
        "frozen": nn.Parameter(torch.randn(2), requires_grad=False),
    }


def test_follows_the_formula_with_a_warm_decay():
    named = parameters(torch.float64)
    ema = Ema(named.items(), decay=0.5)
    expected = {name: p.detach().clone() for name, p in named.items() if p.requires_grad}
    for step in range(20):
        for p in named.values():
            p.data += torch.randn_like(p)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in expected.items():
            expected[name] = decay * value + (1 - decay) * named[name].detach()
    assert set(ema.state_dict()) == {"weight", "logit_scale"}
    for name, value in ema.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


def test_averages_of_bf16_weights_are_fp32():
    """A bf16 average could not move: 0.999 rounds away."""
    named = parameters(torch.bfloat16)
    ema = Ema(named.items(), decay=0.999)
    before = ema.state_dict()["weight"].clone()
    named["weight"].data += 1e-2
    ema.update(100_000)
    moved = ema.state_dict()["weight"] - before
    assert ema.state_dict()["weight"].dtype == torch.float32
    assert (moved > 0).all() and (moved < 1e-4).all()


def test_applied_and_back_bit_for_bit():
    named = parameters()
    ema = Ema(named.items(), decay=0.9)
    named["weight"].data *= 3
    ema.update(0)
    weights = {name: p.detach().clone() for name, p in named.items()}
    try:
        with ema.applied():
            assert torch.equal(named["weight"], ema.state_dict()["weight"])
            assert torch.equal(named["logit_scale"], ema.state_dict()["logit_scale"])
            raise KeyError("an evaluation that fails")
    except KeyError:
        pass
    for name, p in named.items():
        assert torch.equal(p, weights[name])
    named["weight"].data += 1
    assert not torch.equal(named["weight"], ema.state_dict()["weight"])
