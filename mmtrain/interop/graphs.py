"""A graph of several inputs and outputs, whose sizes may be open, and its trace by torch.export."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mmtrain.interop.tower_graphs import quiet, refusing, without_paths


@dataclass(frozen=True)
class Port:
    """An input or an output."""

    name: str
    """Of the tensor."""
    dims: tuple[int | str, ...]
    """Its sizes; an open one is a name."""
    most: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    """What an open size may be at most."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What is traced, and how its ends are called."""

    name: str
    """The file's."""
    told: str
    """What it is, for messages."""
    network: nn.Module
    """In eval mode; takes the inputs in order and gives a tuple, or the one output."""
    example: tuple[Tensor, ...]
    """Inputs of two rows."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def trace(graph: Graph, *, form: str) -> ExportedProgram:
    """The operations, for any of the open sizes.

    Raises:
        UsageError: something in it cannot be traced.
    """
    most = {name: size for port in graph.inputs for name, size in port.most.items()}
    # Traced as two or more; one takes the same operations, as who writes the files tries.
    dims = {
        dim: Dim(dim, min=2, max=most.get(dim))
        for port in graph.inputs
        for dim in port.dims
        if isinstance(dim, str)
    }
    shapes: list[Any] = [
        {at: dims[dim] for at, dim in enumerate(port.dims) if isinstance(dim, str)}
        for port in graph.inputs
    ]
    # With gradients on, a dictionary's keys are made anew and not looked up by addresses.
    with refusing(graph, form=form), quiet(), torch.enable_grad():
        program = torch.export.export(
            graph.network,
            graph.example,
            dynamic_shapes=_by_argument(graph, shapes),
            strict=False,
            # Guards that hold for every size, such as min(T, T * T) == T, are beyond its proofs.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    return without_paths(program)


def _by_argument(graph: Graph, shapes: list[Any]) -> tuple[Any, ...]:
    """As torch.export wants them where the last argument takes all that is left."""
    named = graph.network.forward.__code__.co_argcount - 1
    rest = shapes[named:]
    return (*shapes[:named], tuple(rest)) if rest else tuple(shapes)
