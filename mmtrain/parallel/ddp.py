"""Data parallelism with whole weights on every rank, by torch's DistributedDataParallel.

Li et al., arXiv:2006.15704. With ZeRO-1 (optim/zero.py) it is the same, but for the update.
"""

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
        stage,
        process_group=layout.group("dp"),
        gradient_as_bucket_view=True,  # one copy of the gradients, not two
    )
