"""ZeRO-1: replicas of the weights share out the optimizer's state and work.

Rajbhandari et al., arXiv:1910.02054, section 5.1. Each rank updates whole parameters, so Muon's
matrices need no gathering, and sends what it updated to the others.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer


def share_out(
    kind: type[torch.optim.Optimizer],
    groups: list[dict[str, Any]],
    group: dist.ProcessGroup,
    **options: Any,
) -> Iterator[torch.optim.Optimizer]:
    """Optimizers over the same parameters on every rank, each of which updates its share of them.

    Args:
        kind: the optimizer that each rank runs on its share.
        groups: of parameters, the same on every rank; equal gradients are taken for granted.
        group: the replicas.
        options: of the optimizer.

    Yields:
        One for each dtype, since what is sent lies in one buffer.
    """
    dtypes = {p.dtype: None for one in groups for p in one["params"]}
    for dtype in dtypes:
        same = [
            one | {"params": params}
            for one in groups
            if (params := [p for p in one["params"] if p.dtype == dtype])
        ]
        yield ZeroRedundancyOptimizer(
            same, kind, process_group=group, parameters_as_bucket_view=True, **options
        )


def own_part(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that has state on this rank: the given one, or ZeRO-1's local one."""
    return optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer
