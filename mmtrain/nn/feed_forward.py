"""The position-wise feed-forward of a block: plain and gated activations."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.nn.products import cast_once

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "swiglu", "geglu", "geglu_tanh"]
GATED = ("swiglu", "geglu", "geglu_tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def apply_activation(kind: Activation, x: Tensor) -> Tensor:
    """The nonlinearity of `kind`; for gated kinds the one on the gate's side.

    GELU: Hendrycks and Gimpel, arXiv:1606.08415; SwiGLU and GeGLU: Shazeer, arXiv:2002.05202.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind in ("gelu", "geglu"):
        return F.gelu(x)
    if kind in ("gelu_tanh", "geglu_tanh"):
        return F.gelu(x, approximate="tanh")
    if kind == "quick_gelu":
        return quick_gelu(x)
    if kind == "swiglu":
        return F.silu(x)
    if kind == "relu":
        return F.relu(x)
    raise ValueError(f'activation = "{kind}" is unknown')


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) where the kind is gated."""

    def __init__(
        self, dim: int, hidden_dim: int, *, activation: Activation = "gelu", bias: bool = True
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        gated = activation in GATED
        self.gate: nn.Linear | None = nn.Linear(dim, hidden_dim, bias=bias) if gated else None
        self.down = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_BTD = cast_once(x_BTD)
        up_BTF = self.up(x_BTD)
        if self.gate is None:
            return self.down(apply_activation(self.activation, up_BTF))
        return self.down(apply_activation(self.activation, self.gate(x_BTD)) * up_BTF)
