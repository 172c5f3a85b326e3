"""The few collectives that the losses and the evaluation need, over plain tensors.

Thin names over torch.distributed; `group=None` means one process, and then every function is the
identity. Nothing here differentiates: the losses' own backward calls the transpose it needs
(`gather_rows` forward is `scatter_row_sums` backward), so no communication hides in a graph.
Nothing waits for an accelerator, so a loss can be queued behind a running step.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# Newer torch renamed both and warns of the old names, which are all that 2.11 has.
if hasattr(dist, "all_gather_single"):
    _all_gather, _reduce_scatter = dist.all_gather_single, dist.reduce_scatter_single
else:
    _all_gather, _reduce_scatter = dist.all_gather_into_tensor, dist.reduce_scatter_tensor


def rank_and_size(group: ProcessGroup | None) -> tuple[int, int]:
    """This process's rank in the group and the number of ranks."""
    if group is None:
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def gather_rows(x: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Stacks the rows of all ranks along dim 0, in the order of the ranks.

    Args:
        x: [B, ...] with the same shape and dtype on every rank (see `require_equal`).
        group: the ranks to gather from.

    Returns:
        [ranks * B, ...]; without a group `x` itself.
    """
    if group is None:
        return x
    x = x.contiguous()
    rows, ranks = x.shape[0], dist.get_world_size(group)
    # Not every backend moves bools.
    sent = x.view(torch.uint8) if x.dtype == torch.bool else x
    out = sent.new_empty((ranks * rows, *x.shape[1:]))
    _all_gather(out, sent, group=group)
    return out.view(x.dtype)


def gather_together(tensors: Sequence[Tensor], *, group: ProcessGroup | None) -> list[Tensor]:
    """`gather_rows` of several tensors [B, ...] of any dtypes, their bytes in one collective."""
    if group is None or len(tensors) < 2:
        return [gather_rows(x, group=group) for x in tensors]
    bytes_BN = [x.contiguous().view(x.shape[0], -1).view(torch.uint8) for x in tensors]
    all_AN = gather_rows(torch.cat(bytes_BN, dim=1), group=group)
    parts = all_AN.split([part.shape[1] for part in bytes_BN], dim=1)
    return [
        # A copy in any case: a part of a single row may begin where no number of its dtype may.
        part.clone(memory_format=torch.contiguous_format).view(x.dtype).view(-1, *x.shape[1:])
        for part, x in zip(parts, tensors, strict=True)
    ]


def scatter_row_sums(x: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Sums [ranks * B, ...] over the ranks and hands each rank its own B rows of the sum.

    The transpose of `gather_rows`: the gradient of what was gathered. Without a group `x` itself.
    """
    if group is None:
        return x
    ranks = dist.get_world_size(group)
    assert x.shape[0] % ranks == 0, "scatter_row_sums needs equal rows per rank"
    out = x.new_empty((x.shape[0] // ranks, *x.shape[1:]))
    _reduce_scatter(out, x.contiguous(), group=group)
    return out


def sum_(x: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Replaces `x` by its sum over the ranks and returns it."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x


def max_(x: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Replaces `x` by its element-wise maximum over the ranks and returns it."""
    if group is not None:
        dist.all_reduce(x, op=dist.ReduceOp.MAX, group=group)
    return x


def require_equal(
    values: dict[str, int], *, group: ProcessGroup | None, device: torch.device, remedy: str
) -> None:
    """Refuses to go on when the ranks hold different values.

    A gather of unequal rows hangs or mixes up memory, so this belongs before it.

    Args:
        values: name and value; every rank must name the same keys.
        group: the ranks to compare.
        device: where the group communicates.
        remedy: ends the message.

    Raises:
        ValueError: on every rank, naming the value that each one holds (CPU). On an accelerator
            reading the answer would make the host wait for the device, so there the device
            asserts it: a RuntimeError at the next synchronisation.
    """
    if group is None:
        return
    # `full` runs on the device; `torch.tensor([...])` would copy and wait for it.
    mine = torch.stack([torch.full((), value, device=device) for value in values.values()])
    all_RK = gather_rows(mine[None], group=group)
    if device.type != "cpu":
        message = f"{', '.join(values)} must be equal on all ranks; {remedy}"
        torch._assert_async((all_RK == all_RK[:1]).all(), message)  # pyright: ignore[reportPrivateImportUsage]
        return
    for name, held in zip(values, all_RK.T.tolist(), strict=True):
        if len(set(held)) > 1:
            raise ValueError(f"{name} must be equal on all ranks, but they hold {held}; {remedy}")
