"""Feed-forwards against the formulas, and against transformers' Llama and Gemma."""

import math

import pytest
import torch
from torch import Tensor

from mmtrain.nn import FeedForward


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "gelu": lambda x: x * normal_cdf(x),
    "gelu_tanh": tanh_gelu,
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "relu": lambda x: x.clamp(min=0),
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
    "geglu": lambda x: x * normal_cdf(x),
    "geglu_tanh": tanh_gelu,
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", FORMULAS)
def test_every_activation_is_its_formula(activation, bias):
    torch.manual_seed(0)
    ff = FeedForward(8, 20, activation=activation, bias=bias).double()
    x = 2 * torch.randn(3, 5, 8, dtype=torch.float64)
    act = FORMULAS[activation]
    hidden = act(ff.up(x)) if ff.gate is None else act(ff.gate(x)) * ff.up(x)
    torch.testing.assert_close(ff(x), ff.down(hidden), rtol=1e-9, atol=1e-9)
    assert (ff.gate is not None) == activation.endswith(("glu", "glu_tanh"))
    assert all((part.bias is not None) == bias for part in ff.children())


@pytest.mark.parametrize(
    ("family", "hidden_act", "activation"),
    [("llama", "silu", "swiglu"), ("gemma", "gelu_pytorch_tanh", "geglu_tanh")],
)
def test_gated_kinds_equal_the_decoders_of_transformers(family, hidden_act, activation):
    """Gate and up are not swapped."""
    from transformers.models.gemma.modeling_gemma import GemmaConfig, GemmaMLP
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    config, mlp = {"llama": (LlamaConfig, LlamaMLP), "gemma": (GemmaConfig, GemmaMLP)}[family]
    fields = {"hidden_size": 8, "intermediate_size": 20, "num_attention_heads": 2}
    fields |= {"hidden_act": hidden_act}
    theirs = mlp(config(**fields)).double()
    ours = FeedForward(8, 20, activation=activation, bias=False).double()
    renamed = {k.replace("_proj", ""): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(renamed)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_an_unknown_activation_is_refused():
    ff = FeedForward(4, 8, activation="mish")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match='activation = "mish" is unknown'):
        ff(torch.zeros(1, 1, 4))
