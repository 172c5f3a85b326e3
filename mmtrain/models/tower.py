"""What the vision and the text tower share."""

import torch
from torch import Tensor, nn

from mmtrain.nn import TransformerConfig
from mmtrain.nn.masks import MaskKind


def check_encoder(config: TransformerConfig, *, masks: tuple[MaskKind, ...], rope: int) -> None:
    """Refuse blocks that cannot serve a tower.

    Args:
        config: the blocks.
        masks: the kinds that the tower can build.
        rope: what the head size must be a multiple of for the tower's rotary positions; 1 for none.

    Raises:
        ValueError: naming the field, its value and the remedy.
    """
    if config.mask not in masks:
        raise ValueError(
            f'transformer.mask = "{config.mask}" is not for this tower; use {" or ".join(masks)}'
        )
    if config.context_dim is not None:
        raise ValueError(
            f"transformer.context_dim = {config.context_dim}: a CLIP tower has nothing to look at; "
            "leave it out"
        )
    if config.local_window is not None:
        raise ValueError(
            f"transformer.local_window = {config.local_window} is for decoders; leave it out"
        )
    if config.head_size % rope:
        raise ValueError(
            f"transformer.head_dim = {config.head_size} must be a multiple of {rope} for rotary "
            "positions"
        )


def sinusoidal_positions(num_tokens: int, dim: int, *, like: Tensor) -> Tensor:
    """Fixed sine and cosine positions [T, D]. Vaswani et al. 2017, arXiv:1706.03762, sec. 3.5.

    Args:
        num_tokens: rows.
        dim: columns.
        like: a weight whose device and dtype they get, as learned positions would have them.
    """
    device = like.device
    position_T1 = torch.arange(num_tokens, device=device, dtype=torch.float32)[:, None]
    exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    angle = position_T1 / 10000.0**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim].to(like.dtype)


def init_linears(module: nn.Module, generator: torch.Generator) -> None:
    """U(+-fan_in^-.5) weights and zero biases for every linear layer inside."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()


def reset_norms(*modules: nn.Module | None) -> None:
    """Make every norm inside the identity scale without bias."""
    for module in modules:
        for layer in () if module is None else module.modules():
            if not isinstance(layer, nn.Linear) and hasattr(layer, "reset_parameters"):
                layer.reset_parameters()  # pyright: ignore[reportCallIssue]
