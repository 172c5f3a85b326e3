"""Fully sharded data parallelism (ZeRO-2 and ZeRO-3) by torch's FSDP2.

Rajbhandari et al., arXiv:1910.02054; Zhao et al., arXiv:2304.11277.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from mmtrain.parallel.blocks import numbered_blocks
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.precision import Precision


def apply_fsdp(stage: nn.Module, layout: Layout, precision: Precision) -> None:
    """Shard a stage over the data-parallel axes, in place: each block, then what is left. While a
    block computes the next one is gathered, forward and backward.

    Gradients are averaged over all data-parallel ranks. The stage itself is sharded too, because
    zero-bubble schedules call its FSDP interface.

    With precision `bf16-fsdp` the shards stay fp32, and what is gathered of them, computed with and
    kept for the backward is bf16; gradients are added up and averaged in fp32.
    """
    assert layout.mesh is not None
    hybrid = layout.config.dp_replicate > 1
    mesh = layout.mesh["dp_replicate", "dp_shard"] if hybrid else layout.mesh["dp_shard"]
    reshard = layout.config.reshard_after_forward and layout.size("pp") == 1
    policy = MixedPrecisionPolicy()
    if precision == "bf16-fsdp":
        # Inputs are left alone: pixels, choices and scores, which the model casts where it may.
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    offload = CPUOffloadPolicy() if layout.config.cpu_offload else OffloadPolicy()
    blocks = [block for _, block in numbered_blocks(stage)]
    trains = any(parameter.requires_grad for parameter in stage.parameters())
    for module in (*blocks, stage):
        # What is left stays from a forward to its backward, whose end frees it: it is needed first.
        stays = module is stage and trains
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=reshard and not stays,
            mp_policy=policy,
            offload_policy=offload,
        )
    for block, following in pairwise(cast(list[FSDPModule], blocks)):
        block.set_modules_to_forward_prefetch([following])
        following.set_modules_to_backward_prefetch([block])
