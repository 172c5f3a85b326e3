"""What this rank holds of a tensor: elementwise work needs no more, and spares DTensor's dispatch.

An operation over the 590 tensors of a ViT-L/14 costs the host three to ten times as much through
DTensor as on their local shards (benchmarks/optimizer_host.py).
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate


def local(tensor: Tensor) -> Tensor:
    """The rank's own part of a DTensor, sharing its memory; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradient(parameter: Tensor) -> Tensor:
    """The gradient of what this rank holds of a parameter, pending sums done."""
    gradient = parameter.grad
    assert gradient is not None
    if isinstance(gradient, DTensor) and _pending(gradient):
        assert isinstance(parameter, DTensor)
        gradient = gradient.redistribute(placements=parameter.placements)
    return local(gradient)


@torch.no_grad()
def sum_pending(parameters: Iterable[Tensor]) -> None:
    """Do the sums over ranks that gradients wait for (those of norms under tensor parallelism), all
    of one group in one collective. Collective over the meshes."""
    waiting: dict[tuple[dist.ProcessGroup, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if not isinstance(gradient, DTensor):
            continue
        axes = _pending(gradient)
        if len(axes) != 1 or gradient.placements[axes[0]] != Partial("sum"):
            continue  # none, or what `local_gradient` sees to
        key = gradient.device_mesh.get_group(axes[0]), gradient.dtype
        waiting.setdefault(key, []).append(parameter)
    for (group, _), alike in waiting.items():
        parts = [local(parameter.grad) for parameter in alike if parameter.grad is not None]
        total = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(total, group=group)
        for parameter, part, done in zip(
            alike, parts, total.split([part.numel() for part in parts]), strict=True
        ):
            parameter.grad = _done(parameter.grad, done.view_as(part))


def _pending(gradient: DTensor) -> list[int]:
    """The mesh's axes over which a sum is still to be done."""
    return [axis for axis, p in enumerate(gradient.placements) if isinstance(p, Partial)]


def _done(gradient: Tensor | None, total: Tensor) -> DTensor:
    """The gradient with the sum in place of a rank's part of it."""
    assert isinstance(gradient, DTensor)
    placements = [Replicate() if p.is_partial() else p for p in gradient.placements]
    return DTensor.from_local(
        total,
        gradient.device_mesh,
        placements,
        run_check=False,
        shape=gradient.shape,
        stride=gradient.stride(),
    )
