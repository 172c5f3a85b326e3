"""The one global gradient norm, and clipping by it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from mmtrain.optim.local import local, sum_pending


@dataclass(kw_only=True)
class Rider:
    """Numbers that are wanted summed over all ranks: the norm's sum takes them along where all
    gradients go into one over all ranks, so that the norm too is the same on each, whatever happens
    to one rank's copy."""

    values_N: Tensor
    """fp64; this rank's, then the sums."""
    is_summed: bool = False


@torch.no_grad()
def global_norm(
    parameters: Iterable[Tensor],
    *,
    pp_group: dist.ProcessGroup | None = None,
    shared: Iterable[Tensor] = (),
    rider: Rider | None = None,
) -> Tensor:
    """L2 norm of all gradients of the model, the same on every rank.

    Every gradient counts once: a DTensor's shards are summed over the mesh axes that shard it, a
    pending (Partial) sum is done first, plain tensors are taken as equal on all ranks of a stage.
    Collective over the meshes and `pp_group`.

    Args:
        parameters: of this stage; those without a gradient are skipped.
        pp_group: the ranks of all stages, over which the squares are summed.
        shared: parameters that every stage holds with the same gradient (the logits' scale and
            bias); counted once.
        rider: is summed where it can go along.

    Returns:
        An fp64 scalar on the parameters' device (main memory where they are offloaded); nothing
        waits for it.
    """
    parameters, shared_grads = list(parameters), _gradients(shared)
    by_axes: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
    for gradient in _gradients(parameters):
        part, axes = _reduced_shard(gradient)
        by_axes.setdefault(axes, []).append(part)
    device = parameters[0].device if parameters else torch.device("cpu")
    total = torch.zeros((), device=device, dtype=torch.float64)
    for axes, locals_ in by_axes.items():
        square = _sum_of_squares(locals_)
        for group in axes:
            square = _summed(square, group, rider if len(by_axes) == 1 else None)
        total += square
    if pp_group is not None:
        dist.all_reduce(total, group=pp_group)
    if shared_grads:
        total += _sum_of_squares(shared_grads).to(device)  # offloaded parameters are elsewhere
    return total.sqrt()


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[Tensor],
    max_norm: float | None,
    *,
    pp_group: dist.ProcessGroup | None = None,
    shared: Iterable[Tensor] = (),
    loss_scale: Tensor | float = 1.0,
    rider: Rider | None = None,
) -> Tensor:
    """Scale all gradients so that their global norm is at most `max_norm`; None only measures. Sums
    over ranks that gradients wait for are done first, in one collective.

    Args:
        parameters: as in `global_norm`.
        max_norm: of what is left after `loss_scale`.
        pp_group: as in `global_norm`.
        shared: as in `global_norm`.
        loss_scale: what the loss was multiplied by; the gradients are divided by it.
        rider: as in `global_norm`.

    Returns:
        The norm before clipping, without the loss scale. Where it is not finite the gradients are
        spoilt: the update must be held back.
    """
    parameters, shared = list(parameters), list(shared)
    sum_pending(parameters)
    norm = global_norm(parameters, pp_group=pp_group, shared=shared, rider=rider) / loss_scale
    if max_norm is None and not isinstance(loss_scale, Tensor) and loss_scale == 1:
        return norm
    most = torch.ones_like(norm) if max_norm is None else max_norm / (norm + 1e-6)
    factor = most.clamp(max=1.0) / loss_scale
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in _gradients([*parameters, *shared]):
        part = local(gradient)
        alike.setdefault((part.device, part.dtype), []).append(part)
    for (device, dtype), parts in alike.items():
        torch._foreach_mul_(parts, factor.to(device, dtype))  # pyright: ignore[reportPrivateImportUsage]
    return norm


def _summed(square: Tensor, group: dist.ProcessGroup, rider: Rider | None) -> Tensor:
    """A sum over a group; if that is all ranks, with the rider's."""
    goes = rider is not None and rider.values_N.device == square.device
    if rider is None or not goes or dist.get_world_size(group) < dist.get_world_size():
        dist.all_reduce(square, group=group)
        return square
    told = torch.cat([square[None], rider.values_N])
    dist.all_reduce(told, group=group)
    rider.values_N, rider.is_summed = told[1:], True
    return told[0]


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _reduced_shard(gradient: Tensor) -> tuple[Tensor, tuple[dist.ProcessGroup, ...]]:
    """The local values of a gradient without pending sums, and the groups that share its shards."""
    if not isinstance(gradient, DTensor):
        return gradient, ()
    if any(placement.is_partial() for placement in gradient.placements):
        done = [Replicate() if p.is_partial() else p for p in gradient.placements]
        gradient = gradient.redistribute(placements=done)
    mesh = gradient.device_mesh
    axes = [axis for axis, p in enumerate(gradient.placements) if not isinstance(p, Replicate)]
    return gradient.to_local(), tuple(mesh.get_group(axis) for axis in axes)


def _sum_of_squares(tensors: list[Tensor]) -> Tensor:
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    squares = []
    for dtype, same in by_dtype.items():
        wide = torch.promote_types(dtype, torch.float32)
        norms = torch._foreach_norm(same, 2, dtype=wide)  # pyright: ignore[reportPrivateImportUsage]
        squares.append(torch.stack(norms).double().square().sum())
    return torch.stack(squares).sum()
