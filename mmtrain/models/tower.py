"""What the vision and the text tower share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    config.check_blocks()
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


def draw_uniform(weight: Tensor, bias: Tensor | None, generator: torch.Generator) -> None:
    """Draw a linear map's weight and bias, U(+-fan_in^-.5), in place."""
    bound = weight.size(1) ** -0.5
    weight.uniform_(-bound, bound, generator=generator)
    if bias is not None:
        bias.uniform_(-bound, bound, generator=generator)


def filled(values: tuple[float, ...], *, like: Tensor) -> Tensor:
    """Constants beside a tensor. Fills, where a copy of the host's would wait for the device; a
    buffer would follow the weights into formats that round it."""
    return torch.stack([like.new_full((), value) for value in values])


def reset_norms(*modules: nn.Module | None) -> None:
    """Make every norm inside the identity scale without bias."""
    for module in modules:
        for layer in () if module is None else module.modules():
            if not isinstance(layer, nn.Linear) and hasattr(layer, "reset_parameters"):
                layer.reset_parameters()  # pyright: ignore[reportCallIssue]


def interpolate_positions(table_PD: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A grid of learned positions at another size, bicubic and antialiased as open_clip does it.

    Args:
        table_PD: positions of `old` rows x columns of patches.
        old: the grid that the table is for.
        new: the grid that is wanted.
    """
    if old == new:
        return table_PD
    wide = table_PD.to(torch.promote_types(table_PD.dtype, torch.float32))
    if torch.is_grad_enabled() and wide.requires_grad:
        # As products, whose gradient repeats itself on every device; interpolate's does not.
        sides = (resize_weights(*each, like=wide) for each in zip(old, new, strict=True))
        grid_RCD = torch.einsum("Rr,Cc,rcD->RCD", *sides, wide.unflatten(0, old))
        return grid_RCD.flatten(0, 1).to(table_PD.dtype)
    grid = wide.unflatten(0, old).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return grid[0].flatten(1).T.to(table_PD.dtype)


def resize_weights(old: int, new: int, *, like: Tensor) -> Tensor:
    """What each of `new` places along a side takes of `old` ones, [new, old]: bicubic and
    antialiased."""
    places = torch.eye(old, dtype=like.dtype, device=like.device)[None, None]
    return F.interpolate(places, size=(new, old), mode="bicubic", antialias=True)[0, 0]
