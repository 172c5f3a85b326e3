"""Weights in fp32, computed with in bf16: main parameters and main gradients, in Megatron's words.

Micikevicius et al., arXiv:1710.03740, section 3.1. FSDP's own policy does the same to what it
gathers (shard.py); here it is done to weights that are whole, of one process or of every replica.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmtrain.nn.seams import Forward, wrap_forward
from mmtrain.parallel.blocks import numbered_blocks

_ALIGNED = 64
"""Numbers from one copy's beginning to the next are a multiple of it: products want 16 bytes."""


def compute_in_bf16(stage: nn.Module) -> None:
    """Run a stage while its fp32 parameters are their copies in bf16, in place: each block, then
    what is left. Gradients arrive in fp32, a block's as soon as it is done.

    What is copied together is one operation, as its gradients are. A block that runs again in its
    backward makes its copies again.
    """
    blocks = [block for _, block in numbered_blocks(stage)]
    within = {part for block in blocks for part in block.modules()}
    rest = [part for part in stage.modules() if part not in within]
    for unit, parts in (*((block, list(block.modules())) for block in blocks), (stage, rest)):
        wrap_forward(unit, "copies", partial(_with_copies, parts=parts))


def _with_copies(forward: Forward, *, parts: Sequence[nn.Module]) -> Forward:
    """`forward`, run while the parameters of `parts` are their copies."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with _copied(parts):
            return forward(*args, **kwargs)

    return run


@contextmanager
def _copied(parts: Sequence[nn.Module]) -> Iterator[None]:
    kept = [(part, name, weight) for part in parts for name, weight in _main_weights(part)]
    weights = list(dict.fromkeys(weight for _, _, weight in kept))  # a tied one is copied once
    copies = dict(zip(weights, copies_in_bf16(weights), strict=True))
    for part, name, weight in kept:
        part._parameters[name] = copies[weight]  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for part, name, weight in kept:
            part._parameters[name] = weight


def _main_weights(part: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, weight in part._parameters.items():
        if weight is not None and weight.dtype == torch.float32:
            yield name, weight


def copies_in_bf16(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """fp32 tensors in bf16; their gradients come back in fp32."""
    # Compiled code joins the casts by itself, and a DTensor has its own.
    if torch.compiler.is_compiling() or any(isinstance(weight, DTensor) for weight in weights):
        return [weight.to(torch.bfloat16) for weight in weights]
    return _Copies.apply(*weights) if weights else ()  # pyright: ignore[reportReturnType]


class _Copies(torch.autograd.Function):
    """All casts in one operation, and one backward."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        copies = _cast(weights, torch.bfloat16)
        ctx.set_materialize_grads(False)
        trains = ctx.needs_input_grad
        ctx.mark_non_differentiable(
            *(copy for copy, on in zip(copies, trains, strict=True) if not on)
        )
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        wide = iter(_cast([each for each in gradients if each is not None], torch.float32))
        return tuple(None if each is None else next(wide) for each in gradients)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Contiguous copies in another format, parts of one tensor."""
    if not tensors:
        return []
    starts = [0]
    for x in tensors:
        starts.append(starts[-1] + -(-x.numel() // _ALIGNED) * _ALIGNED)
    flat = torch.empty(starts[-1], dtype=dtype, device=tensors[0].device)
    copies = [
        flat[start : start + x.numel()].view(x.shape)
        for x, start in zip(tensors, starts[:-1], strict=True)
    ]
    torch._foreach_copy_(copies, list(tensors))  # pyright: ignore[reportPrivateImportUsage]
    return copies
