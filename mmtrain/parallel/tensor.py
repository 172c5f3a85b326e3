"""Tensor and sequence parallelism for the one TransformerBlock, applied from outside.

Megatron-LM's split (Shoeybi et al., arXiv:1909.08053; sequence parallel: Korthikanti et al.,
arXiv:2205.05198): q, k, v and the feed-forward's first matrices by columns, o and down by rows;
norms and residuals over a share of the tokens. All that is left is replicated on the same mesh,
because clipping and the fused optimizers refuse a mix of plain and distributed parameters.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import functional as F

from mmtrain.errors import UsageError
from mmtrain.models import ClipStage
from mmtrain.nn import Mask, TransformerConfig
from mmtrain.nn.masks import key_length_allowed
from mmtrain.nn.rope import RopeTable


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
            if list(part.parameters(recurse=False)):
                _distribute(part, device_mesh)
                part.forward = _with_local_parameters(part, part.forward, self.placement)
        return module


def _distribute(module: nn.Module, mesh: DeviceMesh) -> None:
    """The module's own parameters as replicated DTensors."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        data = distribute_tensor(parameter.data, mesh, [Replicate()], src_data_rank=None)
        replica = nn.Parameter(data, requires_grad=parameter.requires_grad)
        module.register_parameter(name, replica)


def _with_local_parameters(
    module: nn.Module, forward: Callable[..., Any], placement: Replicate | Partial
) -> Callable[..., Any]:
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


class SequenceSharded(ParallelStyle):
    """A stack of blocks whose residual stream holds a share of the tokens on each rank.

    Tokens are padded to a multiple of the ranks (ViT-B/16 has 197) and the padding is masked as
    keys; outside of the stack nothing changes.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        forward = module.forward

        def run(
            x_BTD: Tensor, *, mask: Mask, rope: RopeTable | None = None, **kwargs: Any
        ) -> Tensor:
            num_tokens = x_BTD.size(1)
            padding = -num_tokens % device_mesh.size()
            if padding:
                x_BTD = F.pad(x_BTD, (0, 0, 0, padding))
                mask = _pad_mask(mask, num_tokens, padding, x_BTD.device)
                rope = rope and (_pad_rope(rope[0], padding), _pad_rope(rope[1], padding))
            whole = DTensor.from_local(x_BTD, device_mesh, [Replicate()], run_check=False)
            share = whole.redistribute(placements=[Shard(1)]).to_local()
            share = forward(share, mask=mask, rope=rope, **kwargs)
            sharded = DTensor.from_local(share, device_mesh, [Shard(1)], run_check=False)
            out = sharded.redistribute(placements=[Replicate()])
            # Contiguous, because a pipeline may send it on.
            return out.to_local(grad_placements=[Replicate()])[:, :num_tokens].contiguous()

        module.forward = run
        return module


def _pad_rope(table: Tensor, padding: int) -> Tensor:
    """Rotary table [..., T, H] with rows for padding tokens."""
    return F.pad(table, (0, 0, 0, padding))


def _pad_mask(mask: Mask, num_tokens: int, padding: int, device: torch.device) -> Mask:
    """The mask over padded tokens. A causal flag needs no change: padding comes last."""
    if mask.causal:
        return mask
    total = num_tokens + padding
    length = torch.tensor([num_tokens], device=device)
    inside = key_length_allowed(length, total)
    if mask.allowed is None:
        return Mask(allowed=inside)
    rows = padding if mask.allowed.size(1) > 1 else 0
    allowed = F.pad(mask.allowed, (0, padding, 0, rows))
    # A padding query must see some key, or its softmax is 0/0: it sees the first token.
    allowed[:, allowed.size(1) - rows :, 0] = True
    return Mask(allowed=allowed)


def block_plan(*, sequence: bool) -> dict[str, ParallelStyle]:
    """What each part of a TransformerBlock does on the tp mesh."""
    outside = Shard(1) if sequence else Replicate()
    share = LocalCompute(gradient="sum" if sequence else "same")
    return {
        "norm1": share,
        "attention": PrepareModuleInput(
            input_layouts=(outside,), desired_input_layouts=(Replicate(),)
        ),
        "attention.q": ColwiseParallel(),
        "attention.k": ColwiseParallel(),
        "attention.v": ColwiseParallel(),
        "attention.q_norm": LocalCompute(gradient="sum"),
        "attention.k_norm": LocalCompute(gradient="sum"),
        "attention.o": RowwiseParallel(output_layouts=outside),
        "scale1": share,
        "norm2": share,
        "feed_forward": PrepareModuleInput(
            input_layouts=(outside,), desired_input_layouts=(Replicate(),)
        ),
        "feed_forward.up": ColwiseParallel(),
        "feed_forward.gate": ColwiseParallel(),
        "feed_forward.down": RowwiseParallel(output_layouts=outside),
        "scale2": share,
    }


def check_tensor_parallel(name: str, config: TransformerConfig, tp: int) -> None:
    """Refuse a degree that does not divide what it shards.

    Raises:
        UsageError: naming the tower's field, its value and the degrees that work.
    """
    for field, value in (
        ("num_heads", config.num_heads),
        ("num_kv_heads", config.kv_heads),
        ("ff_dim", config.hidden_dim),
    ):
        if value % tp:
            works = [n for n in range(1, value + 1) if value % n == 0 and n <= 64]
            raise UsageError(
                f"parallel.tp = {tp} must divide model.{name}.transformer.{field} = {value}; "
                f"use one of {works}"
            )


def apply_tensor_parallel(stage: nn.Module, mesh: DeviceMesh, *, sequence: bool) -> None:
    """Shard a stage's towers over the tp mesh, in place."""
    assert isinstance(stage, ClipStage), "the recipe refuses tensor parallelism of other models"
    for name, tower in (("vision", stage.vision), ("text", stage.text)):
        check_tensor_parallel(name, tower.transformer.config, mesh.size())
        for block in tower.transformer.blocks.values():
            held = {path for path, _ in block.named_modules()}
            plan = {k: v for k, v in block_plan(sequence=sequence).items() if k in held}
            parallelize_module(block, mesh, plan)
        if sequence:
            parallelize_module(tower.transformer, mesh, SequenceSharded())
        for part in (tower.embed, tower.head):
            if part is not None:
                parallelize_module(part, mesh, LocalCompute(gradient="same"))
