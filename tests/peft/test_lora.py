"""DoRA against the paper's formula (arXiv:2402.09353, Eq. 5 and 11)."""

import pytest
import torch
from torch import nn

from mmtrain.peft import LoraConfig, apply_lora, merge_lora, merged_tensors, unmerge_lora
from mmtrain.peft.lora import LoraLinear

CONFIG = LoraConfig(rank=2, alpha=3, dora=True, targets=("0",))


def adapted(*, bias: bool, shaken: bool) -> tuple[nn.Sequential, nn.Sequential]:
    """Two layers in fp64, as they were and with DoRA; shaken: as if it had trained."""
    torch.manual_seed(0)
    plain, model = (
        nn.Sequential(nn.Linear(5, 7, bias=bias), nn.Linear(7, 3)).double() for _ in "ab"
    )
    model.load_state_dict(plain.state_dict())
    apply_lora(model, CONFIG)
    if shaken:
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter += 0.3 * torch.randn_like(parameter)
    return plain, model


@pytest.mark.parametrize("bias", [True, False])
def test_it_starts_as_the_model_was(bias: bool) -> None:
    plain, model = adapted(bias=bias, shaken=False)
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_the_formula(bias: bool) -> None:
    plain, model = adapted(bias=bias, shaken=True)
    layer = model[0]
    assert isinstance(layer, LoraLinear) and layer.lora_m is not None
    a, b, m = (
        p.detach().clone().requires_grad_() for p in (layer.lora_a, layer.lora_b, layer.lora_m)
    )
    x = torch.randn(4, 5, dtype=torch.float64)
    whole = plain[0].weight + 1.5 * b @ a
    rows = m[:, None] * whole / whole.detach().square().sum(dim=1, keepdim=True).sqrt()
    wanted = plain[1](nn.functional.linear(x, rows, plain[0].bias))
    torch.testing.assert_close(model(x), wanted, rtol=1e-13, atol=1e-13)
    model(x).square().sum().backward()
    wanted.square().sum().backward()
    for name, want in {"lora_a": a, "lora_b": b, "lora_m": m}.items():
        got = layer.get_parameter(name).grad
        torch.testing.assert_close(got, want.grad, rtol=1e-12, atol=1e-12)


def test_merged_it_is_the_same_function() -> None:
    plain, model = adapted(bias=True, shaken=True)
    x = torch.randn(4, 5, dtype=torch.float64)
    wanted = model(x)
    plain.load_state_dict(merged_tensors(model.state_dict(), CONFIG))
    torch.testing.assert_close(plain(x), wanted, rtol=1e-13, atol=1e-13)
    merge_lora(model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-13, atol=1e-13)
    with pytest.raises(ValueError, match="how long its rows were"):
        unmerge_lora(model)
