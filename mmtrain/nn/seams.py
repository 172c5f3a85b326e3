"""Layers around a module's forward, in one stated order.

Parallelism, number formats, recompute and compilation are put around forwards from outside. Each
is right in one place only: local tensors for parameters lie inside of what compiles a block, full
recompute outside of it. So a layer has a name, the names have an order, and what is composed is the
order's, whatever came first. Outside of all of them lie torch's own hooks: FSDP's gathers.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import nn

Forward = Callable[..., Any]
Layer = Literal[
    "local parameters",
    "ranks",
    "copies",
    "recompute within",
    "compile",
    "recompute",
    "autocast",
    "edges",
]

ORDER: tuple[Layer, ...] = get_args(Layer)
"""Innermost first:

- local parameters: a module's DTensors are plain tensors while it runs;
- ranks: what crosses tensor-parallel ranks before it and behind it;
- copies: parameters are their copies in another number format while it runs;
- recompute within: a selection of a block's operations, which compiled code would hide;
- compile: a block's code;
- recompute: a whole block, around its compiled code;
- autocast: a stage's number format;
- edges: what a pipeline's stage takes and hands on.
"""

_LAYERS = "_layers_around_forward"


class _Around(dict[Layer, Callable[[Forward], Forward]]):
    """The layers of one module. They hold its own forward, which a copy would go on calling, with
    the weights of the first: deepcopy asks here, as it goes through what a module has."""

    def __deepcopy__(self, _: Any) -> Any:
        raise ValueError(
            f"a module whose forward has layers ({', '.join(self)}) cannot be copied: the copy "
            "would compute with the weights of the first; copy it before it is laid out"
        )


def wrap_forward(module: nn.Module, layer: Layer, wrapper: Callable[[Forward], Forward]) -> None:
    """Put a layer around a module's forward, in place; `ORDER` says where among the others.

    Args:
        module: calls its forward through the layer from now on.
        layer: its name.
        wrapper: makes the forward with the layer of the one without; called again when a layer
            within it comes later.

    Raises:
        ValueError: the layer is unknown or there already, or somebody replaced the forward.
    """
    if layer not in ORDER:
        raise ValueError(f"layer = {layer!r} is unknown; use one of {', '.join(ORDER)}")
    around: _Around = vars(module).get(_LAYERS, _Around())
    if layer in around:
        raise ValueError(f"{type(module).__name__}'s forward has a layer {layer!r} already")
    if not around and "forward" in vars(module):
        raise ValueError(f"{type(module).__name__}'s forward was replaced; wrap it by a layer")
    around = _Around({**around, layer: wrapper})
    forward: Forward = type(module).forward.__get__(module)
    for name in ORDER:
        if name in around:
            forward = around[name](forward)
    vars(module).update({_LAYERS: around, "forward": forward})


def layers_around(module: nn.Module) -> tuple[Layer, ...]:
    """The names of the layers around a module's forward, innermost first."""
    return tuple(name for name in ORDER if name in vars(module).get(_LAYERS, {}))
