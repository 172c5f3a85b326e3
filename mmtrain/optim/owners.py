"""Work on whole matrices whose rows lie on several ranks: each matrix visits one owner and returns.

To gather every matrix on every rank costs a collective and all of the work for each. Here the ranks
share the matrices out, and two all-to-alls carry all of them, there and back.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Size, Tensor

Work = Callable[[Tensor], Tensor]


def work_at_owners(
    stacks: Sequence[Tensor], num_rows: Sequence[int], work: Work, *, group: dist.ProcessGroup
) -> list[Tensor]:
    """Apply `work` to whole matrices. Collective; every rank gives the same matrices in one order.

    Args:
        stacks: this rank's rows of equal-shaped matrices, [M, r, C] each, of one dtype and device;
            rank s of the group holds the s-th of `torch.chunk`'s pieces, as DTensor's Shard cuts.
        num_rows: R of the whole matrices of each stack.
        work: [n, R, C] -> [n, R, C], for any n; what it makes of a matrix hangs on it alone.
        group: the ranks that hold the rows.

    Returns:
        For each stack the same rows of the results, [M, r, C], in the dtype of `work`'s.
    """
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    counts = _shared_out([stack.size(0) for stack in stacks], world)
    rows = [_pieces(whole, world) for whole in num_rows]

    shares = [stack.split(count) for stack, count in zip(stacks, counts, strict=True)]
    own = [
        [
            Size((count[rank], row[s], stack.size(2)))
            for stack, count, row in zip(stacks, counts, rows, strict=True)
        ]
        for s in range(world)
    ]
    there = _exchange([[share[s] for share in shares] for s in range(world)], own, group)
    done = [work(torch.cat(parts, dim=1)) for parts in zip(*there, strict=True)]

    cut = [whole.split(row, dim=1) for whole, row in zip(done, rows, strict=True)]
    shapes = [[share[s].shape for share in shares] for s in range(world)]
    back = _exchange([[part[s] for part in cut] for s in range(world)], shapes, group)
    return [torch.cat(parts) for parts in zip(*back, strict=True)]


def _exchange(
    parts: list[list[Tensor]], shapes: list[list[Size]], group: dist.ProcessGroup
) -> list[list[Tensor]]:
    """Send each rank its tensors; returns what each rank sent, of the given shapes."""
    flat = [torch.cat([part.reshape(-1) for part in mine]) for mine in parts]
    sent = torch.cat(flat)
    sizes = [[shape.numel() for shape in mine] for mine in shapes]
    totals = [sum(mine) for mine in sizes]
    received = sent.new_empty(sum(totals))
    dist.all_to_all_single(received, sent, totals, [part.numel() for part in flat], group=group)
    return [
        [piece.view(shape) for piece, shape in zip(whole.split(size), mine, strict=True)]
        for whole, size, mine in zip(received.split(totals), sizes, shapes, strict=True)
    ]


def _pieces(whole: int, world: int) -> list[int]:
    """Sizes of the pieces that `torch.chunk` cuts, with the empty ones behind them."""
    size = -(-whole // world)
    return [min(size, max(0, whole - rank * size)) for rank in range(world)]


def _shared_out(wholes: Sequence[int], world: int) -> list[list[int]]:
    """How many of each go to each rank; what is left over goes round."""
    counts, first = [], 0
    for whole in wholes:
        each, rest = divmod(whole, world)
        takes = {(first + i) % world for i in range(rest)}
        counts.append([each + (rank in takes) for rank in range(world)])
        first += rest
    return counts
