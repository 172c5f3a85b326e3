"""Activation recompute: what a block's forward does not keep, its backward computes again.

Chen et al., arXiv:1604.06174; selective: Korthikanti et al., arXiv:2205.05198, section 5.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from mmtrain.limits import check_choices
from mmtrain.nn.seams import Forward, wrap_forward
from mmtrain.parallel.blocks import numbered_blocks

Kept = Literal["attention", "matmul"]
_OPERATIONS: dict[Kept, tuple[str, ...]] = {
    "attention": (
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "bmm",  # the plain form, see nn/attention.py
    ),
    "matmul": ("mm", "addmm"),
}
# Sums that crossed the network: to compute one again is to send it again. A gather is repeated, or
# it would hold on every rank what sequence parallelism shares out.
_SUMS = ("all_reduce", "reduce_scatter_tensor")


@dataclass(frozen=True, kw_only=True)
class RecomputeConfig:
    """Which activations of the blocks are kept for the backward."""

    kind: Literal["none", "selective", "full"] = "none"
    """none keeps all; full keeps a block's input and runs the block again but for a last product
    that nothing asks for, a fifth to a third more work; selective runs again all but what `keep`
    names: norms, activations, masks, softmax."""
    keep: tuple[Kept, ...] = ("attention", "matmul")
    """What selective keeps: results of attention, of matmuls. ("matmul",) runs attention again, as
    Megatron-LM's selective recompute; ("attention",) all but attention."""
    every: int = 1
    """Blocks 0, k, 2k, ... are recomputed; the others keep everything."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.every < 1:
            raise ValueError(f"every = {self.every} must be at least 1")
        if not self.keep:
            raise ValueError('keep = [] keeps nothing; use kind = "full"')
        if self.kind != "selective" and self.keep != ("attention", "matmul"):
            raise ValueError(
                f'keep = {list(self.keep)} has no effect; set kind = "selective" or remove it'
            )
        if self.kind == "none" and self.every != 1:
            raise ValueError(
                f'every = {self.every} has no effect; set kind = "selective" or "full", or remove '
                "it"
            )


def apply_recompute(stage: nn.Module, config: RecomputeConfig, *, early_stop: bool = True) -> None:
    """Recompute a stage's blocks in their backward, in place; parameters keep their names.

    Goes inside of FSDP, which gathers a block before it runs again. No state of a random generator
    is kept, as every random choice is drawn before the forward.

    Args:
        stage: its blocks are changed.
        config: which of them, and what they keep.
        early_stop: end a block's second run where nothing more of it is needed. Not under tensor
            parallelism: it would leave a sum over the ranks begun and never waited for.
    """
    if config.kind == "none":
        return
    context: dict[str, Any] = {"early_stop": early_stop}
    if config.kind == "selective":
        policy = partial(_policy, _kept_operations(config.keep))
        context["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
    # Compiled around full recompute, torch 2.13 lost the order of tensor parallelism's collectives.
    layer = "recompute within" if config.kind == "selective" else "recompute"
    for number, block in numbered_blocks(stage):
        if number % config.every == 0:
            wrap_forward(block, layer, partial(_recomputed, context=context))


def _recomputed(forward: Forward, *, context: dict[str, Any]) -> Forward:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():  # the first of two passes keeps nothing anyway
            return forward(*args, **kwargs)
        return checkpoint(
            forward, *args, use_reentrant=False, preserve_rng_state=False, **context, **kwargs
        )

    return run


def _policy(kept: frozenset[Any], _: Any, operation: Any, *args: Any, **kwargs: Any) -> Any:
    keep = operation in kept
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _kept_operations(kinds: tuple[Kept, ...]) -> frozenset[Any]:
    """The operations behind the kinds, those that this torch has, and the sums over ranks."""
    aten, network = torch.ops.aten, torch.ops._c10d_functional
    found = {
        getattr(aten, name).default
        for kind in kinds
        for name in _OPERATIONS[kind]
        if hasattr(aten, name)
    }
    return frozenset(found | {getattr(network, name).default for name in _SUMS})
