"""Data parallelism with whole weights on every rank, by torch's DistributedDataParallel.

Li et al., arXiv:2006.15704. With ZeRO-1 (optim/zero.py) it is the same, but for the update.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmtrain.parallel.mesh import Layout


def replicate(stage: nn.Module, layout: Layout) -> nn.Module:
    """What to call instead of `stage`, so that gradients are averaged over the replicas.

    A bucket of gradients is summed as soon as the backward has filled it, while the rest is still
    computed. The parameters stay the stage's, under its names.
    """
    if not any(parameter.requires_grad for parameter in stage.parameters()):
        return stage
    return DistributedDataParallel(
        _WithUnused(stage),
        process_group=layout.group("dp"),
        gradient_as_bucket_view=True,  # one copy of the gradients, not two
        # Else DDP sorts its buckets anew after its first step. More than two ranks then add up in
        # another order, and a run that is resumed differs in its last bits from one that was not.
        find_unused_parameters=True,
    )


class _WithUnused(nn.Module):
    """A stage, and a parameter that nothing uses: without one, DDP writes a warning on every rank
    that it looked for some in vain, which no filter reaches (torch 2.14)."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        like = next(stage.parameters())
        self.unused = nn.Parameter(torch.zeros((), dtype=like.dtype, device=like.device))

    def forward(self, *inputs: Any, **rows: Any) -> Any:
        return self.stage(*inputs, **rows)
