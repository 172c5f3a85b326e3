"""Modules that compute on plain tensors while their parameters live on the tp mesh."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import ParallelStyle

from mmtrain.nn.seams import Forward, wrap_forward


class LocalCompute(ParallelStyle):
    """Replicated parameters of a module that computes on plain tensors.

    Parameters become DTensors, so that norm, clipping and optimizer see one mesh; forward sees
    their local tensors, so that the module needs no DTensor rule for any of its operations.

    Args:
        gradient: `same` where every rank computes the same thing, `sum` where each rank sees its
            share of the tokens or heads, so that the gradients add up over the ranks.
    """

    def __init__(self, *, gradient: Literal["same", "sum"]) -> None:
        super().__init__()
        self.placement = Replicate() if gradient == "same" else Partial()

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for part in module.modules():
            self.apply_to_one(part, device_mesh)
        return module

    def apply_to_one(self, module: nn.Module, mesh: DeviceMesh) -> None:
        """Apply to a module's own parameters alone."""
        if list(module.parameters(recurse=False)):
            distribute_parameters(module, mesh, Replicate())
            compute_locally(module, self.placement)


def distribute_parameters(
    module: nn.Module,
    mesh: DeviceMesh,
    placement: Replicate | Shard,
    *,
    but: Mapping[str, Replicate | Shard] | None = None,
) -> None:
    """The module's own parameters as DTensors, in place; those that `but` names as it says."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        placed = placement if but is None else but.get(name, placement)
        data = distribute_tensor(parameter.data, mesh, [placed], src_data_rank=None)
        replica = nn.Parameter(data, requires_grad=parameter.requires_grad)
        module.register_parameter(name, replica)


def compute_locally(module: nn.Module, placement: Placement) -> None:
    """Run the module's forward while its parameters are their local tensors, in place."""
    wrap_forward(
        module,
        "local parameters",
        lambda forward: with_local_parameters(module, forward, placement),
    )


def with_local_parameters(module: nn.Module, forward: Forward, placement: Placement) -> Forward:
    """`forward`, run while the module's parameters are their local tensors."""

    @contextmanager
    def local_parameters() -> Iterator[None]:
        kept = dict(module._parameters)
        for name, parameter in kept.items():
            if isinstance(parameter, DTensor):
                module._parameters[name] = parameter.to_local(grad_placements=[placement])  # pyright: ignore[reportArgumentType]
        try:
            yield
        finally:
            module._parameters.update(kept)

    def run(*args: Any, **kwargs: Any) -> Any:
        with local_parameters():
            return forward(*args, **kwargs)

    return run
