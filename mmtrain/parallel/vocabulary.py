"""A decoder's vocabulary, shared out over the tp mesh: its embedding, its head, tied or not.

Each rank holds ceil(V / tp) rows of the matrices (the last rank may hold fewer), looks up the ids
that are its own, and computes the logits of its entries; losses/vocabulary.py takes them from
there. Shoeybi et al., arXiv:1909.08053, section 3.
"""

from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from mmtrain.errors import UsageError
from mmtrain.models import Decoder
from mmtrain.models.vocabulary import TiedLogits, TokenEmbedding
from mmtrain.nn.seams import Forward, wrap_forward
from mmtrain.parallel.local_compute import compute_locally, distribute_parameters


def shard_vocabulary(decoder: Decoder, mesh: DeviceMesh) -> set[nn.Module]:
    """Shard the vocabulary of a decoder, or of a slice of one, in place -> the modules that it did;
    check_vocabulary says whether it can be."""
    done: set[nn.Module] = set()
    if decoder.embed is not None:
        _shard_embedding(decoder.embed.token, mesh)
        done.add(decoder.embed.token)
    if decoder.head is None:
        return done
    if decoder.head.tied is not None:
        _give_whole_gradient(decoder.head.tied, mesh)
        done.add(decoder.head.tied)
    if decoder.head.projection is not None:
        projection = decoder.head.projection
        distribute_parameters(projection, mesh, Shard(0))
        compute_locally(projection, Shard(0))
        _give_whole_gradient(projection, mesh)
        done.add(projection)
    return done


def has_vocabulary(module: nn.Module) -> TypeGuard[Decoder]:
    """Whether a module names this plan as its own, whatever it is."""
    return getattr(module, "tensor_plan", None) == "vocabulary"


def check_vocabulary(decoder: Decoder, size: int) -> None:
    """Refuse more ranks than have a share of the entries.

    Raises:
        UsageError: there are hardly more ranks than entries.
    """
    vocab_size = decoder.config.vocab_size
    if (size - 1) * -(-vocab_size // size) >= vocab_size:
        raise UsageError(
            f"parallel.tp = {size} leaves a rank without one of the {vocab_size} entries of the "
            "vocabulary; use a smaller parallel.tp"
        )


def _shard_embedding(token: TokenEmbedding, mesh: DeviceMesh) -> None:
    """Rows of the matrix on each rank; a look-up is a sum over the ranks, one of which has it."""
    each = -(-token.weight.size(0) // mesh.size())
    first = each * mesh.get_local_rank()
    num = min(each, token.weight.size(0) - first)
    distribute_parameters(token, mesh, Shard(0))
    compute_locally(token, Shard(0))

    def of_all_ranks(look_up: Forward) -> Forward:
        def run(tokens_BT: Tensor) -> Tensor:
            own_BT = (tokens_BT >= first) & (tokens_BT < first + num)
            x_BTD = look_up((tokens_BT - first).clamp(0, num - 1))
            x_BTD = torch.where(own_BT[..., None], x_BTD, 0)
            return _SumOverRanks.apply(x_BTD, mesh.get_group())

        return run

    def matrix() -> Tensor:
        weight = token.weight
        return (
            weight.to_local(grad_placements=[Shard(0)]) if isinstance(weight, DTensor) else weight
        )

    wrap_forward(token, "ranks", of_all_ranks)
    token.matrix = matrix


def _give_whole_gradient(module: TiedLogits | nn.Linear, mesh: DeviceMesh) -> None:
    """Each rank's logits give a part of their features' gradient: add the parts up."""

    def summed(forward: Forward) -> Forward:
        return lambda x, *weight: forward(_SumOfGradients.apply(x, mesh.get_group()), *weight)

    wrap_forward(module, "ranks", summed)


class _SumOverRanks(torch.autograd.Function):
    """The sum; every rank goes on alike from it, so that its gradient is each one's. A plain
    tensor, never one that is still on its way: a compiled block would take it as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _SumOfGradients(torch.autograd.Function):
    """The identity, whose gradient is the sum over the ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Contiguous and not the graph's own: the sum is taken in place.
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None
