"""Each collective against what the ranks' values say."""

import time

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessRaisedException

from mmtrain.collectives import (
    gather_rows,
    gather_together,
    max_,
    rank_and_size,
    require_equal,
    scatter_row_sums,
    sum_,
)
from tests import ranks
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def test_without_a_group_nothing_moves():
    x = torch.arange(6.0).view(3, 2)
    assert rank_and_size(None) == (0, 1)
    for collective in (gather_rows, scatter_row_sums, sum_, max_):
        assert collective(x, group=None) is x
    assert all(each is x for each in gather_together([x, x], group=None))
    require_equal({"rows": 3}, group=None, device=CPU, remedy="")


def test_with_two_ranks():
    run_ranks(check_collectives, 2)


def fail_alone(rank: int) -> None:
    if rank == 1:
        leave = ranks.leave_ranks

        def leave_early() -> None:
            leave()
            time.sleep(3)  # the others end before this one

        ranks.leave_ranks = leave_early
        raise ValueError("the cause")
    dist.barrier()


def test_of_ranks_that_fail_the_cause_is_told():
    """Not the connection that the others lose by it."""
    with pytest.raises(ProcessRaisedException, match="the cause"):
        run_ranks(fail_alone, 3)


def test_a_group_of_one_rank_with_one_row():
    run_ranks(check_one_row, 1)


def check_one_row(rank: int) -> None:
    """Parts of a row of bytes begin where no number of their format may."""
    odd = [torch.ones(1, 3), torch.tensor([True]), torch.tensor([7]), torch.ones(1, 1).bfloat16()]
    parts = gather_together([*odd, torch.ones(1, 2).double()], group=dist.group.WORLD)
    for part, each in zip(parts, odd, strict=False):
        assert part.dtype == each.dtype and torch.equal(part, each)


def check_collectives(rank: int) -> None:
    group = dist.group.WORLD
    assert rank_and_size(group) == (rank, 2)
    both = torch.arange(12.0).view(2, 3, 2)

    assert torch.equal(gather_rows(both[rank], group=group), both.view(6, 2))
    # A column of a matrix is not contiguous.
    assert torch.equal(gather_rows(both[rank][:, 1], group=group), both[:, :, 1].reshape(6))
    flags = torch.tensor([[True, False, False], [False, True, True]])
    gathered = gather_rows(flags[rank], group=group)
    assert gathered.dtype == torch.bool
    assert torch.equal(gathered, flags.view(6))

    # Of any formats and shapes, columns of a matrix among them, to the bit.
    mixed = [flags, both.double(), both[..., 0].bfloat16(), torch.tensor([[7, -1, 5], [1, 2, -9]])]
    mixed += [both.transpose(1, 2)[:, :, :1].expand(2, 2, 3).transpose(1, 2)]
    parts = gather_together([each[rank] for each in mixed], group=group)
    for part, each in zip(parts, mixed, strict=True):
        assert part.dtype == each.dtype and torch.equal(part, each.flatten(0, 1))

    # Rank r holds (r + 1) * x, so the sum is 3 x.
    x = torch.arange(8.0).view(4, 2)
    own = slice(2 * rank, 2 * rank + 2)
    assert torch.equal(scatter_row_sums((rank + 1) * x, group=group), 3 * x[own])
    with pytest.raises(AssertionError, match="equal rows"):
        scatter_row_sums(x[:3], group=group)

    total, top = torch.tensor([1.0 + rank, -1.0]), torch.tensor([5.0 * rank, -1.0 * rank])
    assert sum_(total, group=group) is total
    assert max_(top, group=group) is top
    assert total.tolist() == [3.0, -2.0]
    assert top.tolist() == [5.0, 0.0]

    require_equal({"rows": 3, "dim": 2}, group=group, device=CPU, remedy="pad")
    with pytest.raises(ValueError, match=r"^dim must be equal on all ranks, .* \[2, 3\]; pad$"):
        require_equal({"rows": 3, "dim": 2 + rank}, group=group, device=CPU, remedy="pad")
