"""Slices of what models are made of, for the stages of a pipeline: parts are shared, not copied."""

import copy
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from torch import nn

from mmtrain.models.model import Stack
from mmtrain.nn import Transformer


class _Parts(Protocol):
    _modules: dict[str, nn.Module | None]


class _TowerParts(_Parts, Protocol):
    embed: Any
    transformer: Transformer
    head: Any


_Module = TypeVar("_Module", bound=_Parts)
_Tower = TypeVar("_Tower", bound=_TowerParts)


def layer_range(num_layers: int, index: int, num_stages: int) -> range:
    """The layers of stage `index`: an even cut, earlier stages taking the smaller share."""
    return range(num_layers * index // num_stages, num_layers * (index + 1) // num_stages)


def slice_blocks(transformer: Transformer, index: int, num_stages: int) -> Transformer:
    """The stage's share of a stack of blocks, under their names; `transformer` stays whole."""
    part = shallow_copy(transformer)
    kept = layer_range(transformer.config.num_layers, index, num_stages)
    blocks = {name: block for name, block in transformer.blocks.items() if int(name) in kept}
    part.blocks = nn.ModuleDict(blocks)
    return part


def slice_tower(tower: _Tower, index: int, num_stages: int) -> _Tower:
    """The stage's share of a tower or decoder; names of parameters do not change."""
    part = shallow_copy(tower)
    part.transformer = slice_blocks(tower.transformer, index, num_stages)
    if index > 0:
        part.embed = None
    if index < num_stages - 1:
        part.head = None
    return part


def shallow_copy(module: _Module) -> _Module:
    """A module with a child table of its own over the same parts."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def longest(stacks: Sequence[Stack]) -> int:
    """Layers of the longest of them, which is as often as they can be cut side by side."""
    return max(stack.blocks.config.num_layers for stack in stacks)


def balance(first: Sequence[Stack], then: Sequence[Stack], num_stages: int) -> int:
    """Stages for `first`, the rest being for `then`, which works on its results: the slowest stage
    is the fastest that it can be, by the FLOPs of an image and a text."""
    fits = range(max(1, num_stages - longest(then)), min(num_stages - 1, longest(first)) + 1)
    flops, rest = _flops(first), _flops(then)
    return min(fits, key=lambda num: max(flops / num, rest / (num_stages - num)))


def _flops(stacks: Sequence[Stack]) -> int:
    """Products of the blocks, in proportion."""
    return sum(
        stack.blocks.config.num_layers * stack.blocks.config.matrix_weights * stack.tokens
        for stack in stacks
    )
