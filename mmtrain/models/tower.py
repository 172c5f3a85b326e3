"""What the vision and the text tower share."""

import torch
from torch import Tensor, nn


def sinusoidal_positions(num_tokens: int, dim: int, *, device: torch.device) -> Tensor:
    """Fixed sine and cosine positions [T, D]. Vaswani et al. 2017, arXiv:1706.03762, section 3.5."""
    position_T1 = torch.arange(num_tokens, device=device, dtype=torch.float32)[:, None]
    exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    angle = position_T1 / 10000.0**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


def init_linears(module: nn.Module, generator: torch.Generator) -> None:
    """U(+-fan_in^-.5) weights and zero biases for every linear layer inside."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
