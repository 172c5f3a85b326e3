"""Tensor and sequence parallelism for the one TransformerBlock, applied from outside.

Megatron-LM's split (Shoeybi et al., arXiv:1909.08053; sequence parallel: Korthikanti et al.,
arXiv:2205.05198): q, k, v and the feed-forward's first matrices by columns, o and down by rows;
norms and residuals over a share of the tokens. parallel/tensor_plans.py applies it.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
)
from torch.nn import functional as F

from mmtrain.errors import UsageError
from mmtrain.nn import Mask, TransformerConfig
from mmtrain.nn.masks import key_length_allowed
from mmtrain.nn.rope import RopeTable
from mmtrain.nn.seams import Forward, wrap_forward
from mmtrain.parallel.local_compute import (
    LocalCompute,
    distribute_parameters,
    with_local_parameters,
)
from mmtrain.peft import LoraLinear


class SequenceSharded(ParallelStyle):
    """A stack of blocks whose residual stream holds a share of the tokens on each rank.

    Tokens are padded to a multiple of the ranks (ViT-B/16 has 197) and the padding is masked as
    keys; outside of the stack nothing changes.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        wrap_forward(module, "ranks", partial(_over_shares, mesh=device_mesh))
        return module


def _over_shares(forward: Forward, *, mesh: DeviceMesh) -> Forward:
    def run(
        x_BTD: Tensor,
        *,
        mask: Mask,
        local_mask: Mask | None = None,
        rope: RopeTable | None = None,
        local_rope: RopeTable | None = None,
        **kwargs: Any,
    ) -> Tensor:
        num_tokens = x_BTD.size(1)
        padding = -num_tokens % mesh.size()
        if padding:
            x_BTD = F.pad(x_BTD, (0, 0, 0, padding))
            mask = pad_mask(mask, num_tokens, padding, x_BTD.device)
            local_mask = local_mask and pad_mask(local_mask, num_tokens, padding, x_BTD.device)
            rope, local_rope = pad_rope(rope, padding), pad_rope(local_rope, padding)
        whole = DTensor.from_local(x_BTD, mesh, [Replicate()], run_check=False)
        share = whole.redistribute(placements=[Shard(1)]).to_local()
        told = {"local_mask": local_mask, "rope": rope, "local_rope": local_rope}
        share = forward(share, mask=mask, **told, **kwargs)
        sharded = DTensor.from_local(share, mesh, [Shard(1)], run_check=False)
        out = sharded.redistribute(placements=[Replicate()])
        # Contiguous, because a pipeline may send it on.
        return out.to_local(grad_placements=[Replicate()])[:, :num_tokens].contiguous()

    return run


def pad_rope(tables: RopeTable | None, padding: int) -> RopeTable | None:
    """Rotary tables [..., T, H] with rows for padding tokens."""
    if tables is None:
        return None
    cos, sin = (F.pad(table, (0, 0, 0, padding)) for table in tables)
    return cos, sin


def pad_mask(mask: Mask, num_tokens: int, padding: int, device: torch.device) -> Mask:
    """The mask over padded tokens. A causal flag needs no change: padding comes last. Beside texts
    side by side it is one more of them."""
    if mask.lengths is not None:
        return replace(mask, lengths=(*mask.lengths, padding))
    if mask.causal:
        return mask
    total = num_tokens + padding
    length = torch.full((1,), num_tokens, device=device)
    inside = key_length_allowed(length, total)
    if mask.allowed is None:
        return Mask(allowed=inside)
    rows = padding if mask.allowed.size(1) > 1 else 0
    allowed = F.pad(mask.allowed, (0, padding, 0, rows))
    # A padding query must see some key, or its softmax is 0/0: it sees the first token.
    allowed[:, allowed.size(1) - rows :, 0] = True
    return Mask(allowed=allowed)


class Columns(ColwiseParallel):
    """A linear layer by columns. Of a LoRA term, A is on every rank and B goes with the columns."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        distribute_parameters(module, device_mesh, Shard(0), but={"lora_a": Replicate()})


class Rows(RowwiseParallel):
    """A linear layer by rows. Of a LoRA term, A goes with the rows and B is on every rank."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        cut = {"weight": Shard(1), "lora_a": Shard(1)}
        distribute_parameters(module, device_mesh, Replicate(), but=cut)


class SharedHeads(ParallelStyle):
    """Keys or values of fewer heads than ranks: each computes the one head that its queries share.

    The matrix is replicated; its gradients, each of one head's rows, add up over the ranks.

    Args:
        num_heads: of keys, a divisor of the ranks.
        head_dim: features of each.
    """

    def __init__(self, *, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Linear)
        if isinstance(module, LoraLinear):
            raise UsageError(
                f"peft.targets has keys or values of {self.num_heads} heads, which parallel.tp = "
                f"{device_mesh.size()} does not cut; leave them out or set parallel.tp = "
                f"{self.num_heads}"
            )
        linear = module
        distribute_parameters(linear, device_mesh, Replicate())
        head = device_mesh.get_local_rank() * self.num_heads // device_mesh.size()
        rows = slice(head * self.head_dim, (head + 1) * self.head_dim)

        def project() -> tuple[Tensor, Tensor | None]:
            return linear.weight[rows], None if linear.bias is None else linear.bias[rows]

        local_rows = with_local_parameters(linear, project, Partial())

        def run(x: DTensor) -> Tensor:
            return F.linear(x.to_local(grad_placements=[Partial()]), *local_rows())

        wrap_forward(linear, "local parameters", lambda forward: run)
        return linear


def block_plan(config: TransformerConfig, *, tp: int, sequence: bool) -> dict[str, ParallelStyle]:
    """What each part of a TransformerBlock does on a tp mesh."""
    outside = Shard(1) if sequence else Replicate()
    share = LocalCompute(gradient="sum" if sequence else "same")

    def key_value() -> ParallelStyle:
        if config.kv_heads % tp == 0:
            return Columns()
        return SharedHeads(num_heads=config.kv_heads, head_dim=config.head_size)

    def attention(name: str, *contexts: Placement) -> dict[str, ParallelStyle]:
        whole = (Replicate(),) * (1 + len(contexts))
        return {
            name: PrepareModuleInput(
                input_layouts=(outside, *contexts), desired_input_layouts=whole
            ),
            f"{name}.q": Columns(),
            f"{name}.k": key_value(),
            f"{name}.v": key_value(),
            f"{name}.q_norm": LocalCompute(gradient="sum"),
            f"{name}.k_norm": LocalCompute(gradient="sum"),
            f"{name}.o": Rows(output_layouts=outside),
        }

    return {
        "norm1": share,
        "norm1_behind": share,
        **attention("attention"),
        "scale1": share,
        "norm_cross": share,
        "norm_cross_behind": share,
        # What is looked at is whole on every rank.
        **attention("cross_attention", Replicate()),
        "scale_cross": share,
        "norm2": share,
        "norm2_behind": share,
        "feed_forward": PrepareModuleInput(
            input_layouts=(outside,), desired_input_layouts=(Replicate(),)
        ),
        "feed_forward.up": Columns(),
        "feed_forward.gate": Columns(),
        "feed_forward.down": Rows(output_layouts=outside),
        "scale2": share,
    }


def check_tensor_parallel(key: str, config: TransformerConfig, tp: int) -> None:
    """Refuse a degree that does not divide what it shards.

    Args:
        key: of the blocks' section in a recipe.
        config: the blocks.
        tp: the degree.

    Raises:
        UsageError: naming the field, its value and the degrees that work.
    """
    if tp > 1 and not config.num_layers:
        raise UsageError(
            f"parallel.tp = {tp} cannot cut {key.removesuffix('transformer')}trunk, which is not "
            "made of our blocks; set parallel.tp = 1"
        )
    for field, value in (("num_heads", config.num_heads), ("ff_dim", config.hidden_dim)):
        if value % tp:
            works = [n for n in range(1, value + 1) if value % n == 0 and n <= 64]
            raise UsageError(
                f"parallel.tp = {tp} must divide {key}.{field} = {value}; use one of {works}"
            )
    if tp > 1 and config.qk_norm_over == "heads":
        raise UsageError(
            f'parallel.tp = {tp}: {key}.qk_norm_over = "heads" needs all heads of a token on every '
            "rank; set parallel.tp = 1"
        )
    heads = config.kv_heads
    if heads % tp and tp % heads:
        works = [
            n
            for n in range(1, min(config.num_heads, 64) + 1)
            if config.num_heads % n == 0 and (heads % n == 0 or n % heads == 0)
        ]
        raise UsageError(
            f"parallel.tp = {tp} must divide {key}.num_kv_heads = {heads} or be a multiple of it; "
            f"use one of {works}"
        )
