"""Fully sharded data parallelism (ZeRO-2 and ZeRO-3) by torch's FSDP2.

Rajbhandari et al., arXiv:1910.02054; Zhao et al., arXiv:2304.11277.
"""

from torch import nn
from torch.distributed.fsdp import fully_shard

from mmtrain.parallel.blocks import numbered_blocks
from mmtrain.parallel.mesh import Layout


def apply_fsdp(stage: nn.Module, layout: Layout) -> None:
    """Shard a stage over the data-parallel axes, in place: each block, then what is left.

    Gradients are averaged over all data-parallel ranks. The stage itself is sharded too, because
    zero-bubble schedules call its FSDP interface.
    """
    assert layout.mesh is not None
    hybrid = layout.config.dp_replicate > 1
    mesh = layout.mesh["dp_replicate", "dp_shard"] if hybrid else layout.mesh["dp_shard"]
    reshard = layout.config.reshard_after_forward and layout.size("pp") == 1
    for _, block in numbered_blocks(stage):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(stage, mesh=mesh, reshard_after_forward=reshard)
