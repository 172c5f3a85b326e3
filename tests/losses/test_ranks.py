"""Ranks that share a batch get the single process's loss and gradients."""

from contextlib import ExitStack
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmtrain.losses import _blocks, _gradients, _sigmoid_sums, affinity_loss, clip_loss
from tests.losses.reference import (
    LABELS,
    PARTS,
    Case,
    assert_near,
    assert_same_by_parts,
    by_parts,
    gradients,
    inputs,
)
from tests.ranks import run_ranks


@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_equal_one_process(num_ranks):
    run_ranks(check_all, num_ranks, num_ranks)


def check_all(rank: int, num_ranks: int) -> None:
    world = dist.group.WORLD
    assert world is not None
    check_refusals(rank, world)
    if num_ranks == 2:
        check_ddp(rank, num_ranks, world)
    _blocks.block_shape = lambda *args: (2, 7)
    check_group(rank, num_ranks, world)
    check_parts(rank, num_ranks, world)
    if num_ranks == 4:
        # A group of some ranks only, whose rank numbers are not the global ones.
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        check_group(rank % 2, 2, groups[rank // 2])


def check_group(rank: int, num_ranks: int, group) -> None:
    """Value and gradients of each form; each rank holds 5 rows."""
    num_rows = 5 * num_ranks
    own = slice(5 * rank, 5 * rank + 5)
    valid = torch.arange(num_rows) % 4 != 2
    # All of the last rank's rows are padding.
    valid[-5:] = False
    forms = (("attract", "none"), ("attract", "mixed"), ("ignore", "mixed"))
    for kind in ("clip", "siglip", "affinity"):
        for positives, labels in forms[:1] if kind == "affinity" else forms:
            for case_valid in (None, valid):
                values = LABELS[labels](num_rows)
                case = Case(kind=kind, positives=positives, labels=values, valid=case_valid)
                for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
                    leaves = inputs(num_rows, dtype=dtype)
                    check_case(case, leaves, own, num_ranks, group, tolerance)


def check_case(case, leaves, own, num_ranks, group, tolerance) -> None:
    exact = tuple(x.detach().double().requires_grad_() for x in leaves)
    want = case.naive(*exact)
    want_image, want_text, *want_scalars = gradients(want, exact)
    image, text, scale, bias = leaves
    mine = (image[own].detach().requires_grad_(), text[own].detach().requires_grad_(), scale, bias)
    got = case.rows(own).ours(*mine, group=group)
    own_share = case.rows(own).ours(*mine, group=group, sum_loss=False).detach()
    dist.all_reduce(own_share, group=group)
    assert_near(own_share, want, tolerance, f"sum of the shares of {case}")
    assert_near(got, want, tolerance, f"loss of {case}")
    image_grad, text_grad, *scalar_grads = gradients(got, mine)
    # Averaging over the ranks divides what reaches a parameter by their number.
    assert_near(image_grad / num_ranks, want_image[own], tolerance, f"image gradient of {case}")
    assert_near(text_grad / num_ranks, want_text[own], tolerance, f"text gradient of {case}")
    for grad, wanted in zip(scalar_grads, want_scalars, strict=True):
        dist.all_reduce(grad, group=group)
        assert_near(grad / num_ranks, wanted, tolerance, f"scale or bias gradient of {case}")


def check_parts(rank: int, num_ranks: int, group) -> None:
    """Each rank holds 13 rows; they cut them differently, all of the last one's are padding."""
    num_rows = 13 * num_ranks
    own = slice(13 * rank, 13 * rank + 13)
    valid = torch.arange(num_rows) % 4 != 2
    valid[-13:] = False
    parts = list(PARTS.values())[rank]
    for positives, labels in (("attract", "none"), ("attract", "mixed"), ("ignore", "mixed")):
        for case_valid in (None, valid):
            values = LABELS[labels](num_rows)
            whole = Case(kind="siglip", positives=positives, labels=values, valid=case_valid)
            image, text, *scalars = inputs(num_rows)
            mine = (*(x[own].detach().requires_grad_() for x in (image, text)), *scalars)
            assert_same_by_parts(whole.rows(own), mine, 1e-12, parts=parts, group=group)
    check_collectives(mine, parts, group)


def check_collectives(leaves, parts, group) -> None:
    """One gather of all, one scatter of the texts' gradients, one sum of the loss."""
    places = (
        (_blocks, "gather_together"),
        (_gradients, "scatter_row_sums"),
        (_sigmoid_sums, "sum_"),
    )
    with ExitStack() as patches:
        spies = [
            patches.enter_context(mock.patch.object(where, name, wraps=getattr(where, name)))
            for where, name in places
        ]
        by_parts(Case(kind="siglip"), *(x.detach() for x in leaves), parts=parts, group=group)
    assert [spy.call_count for spy in spies] == [1, 1, 1]


def check_ddp(rank: int, num_ranks: int, group) -> None:
    """The convention is the one of DDP: its averaged gradient is the single process's."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 5, dtype=torch.float64)
    x = torch.randn(2, 3 * num_ranks, 6, dtype=torch.float64)
    clip_loss(model(x[0]), model(x[1]), logit_scale=3.0).backward()
    want = model.weight.grad.clone()
    model.zero_grad()
    replica = DistributedDataParallel(model)
    image, text = replica(x[:, 3 * rank : 3 * rank + 3])
    clip_loss(image, text, logit_scale=3.0, group=group).backward()
    assert_near(model.weight.grad, want, 1e-12, "gradient under DDP")


def check_refusals(rank: int, group) -> None:
    """Every rank refuses, none is left waiting in a gather."""
    x = torch.ones(3 if rank else 4, 5)
    with pytest.raises(ValueError, match=r"rows must be equal on all ranks, but they hold \[4, 3"):
        clip_loss(x, x, logit_scale=1.0, group=group)
    x = torch.ones(3, 5)
    with pytest.raises(ValueError, match=r"teacher's features must be equal .* hold \[4, 2"):
        teacher = torch.ones(3, 2 if rank else 4)
        affinity_loss(
            x,
            x,
            teacher_image_BE=teacher,
            teacher_text_BE=teacher,
            logit_scale=1.0,
            teacher_logit_scale=1.0,
            group=group,
        )
    labels = torch.zeros(3, dtype=torch.int64) if rank else None
    with pytest.raises(ValueError, match="labels_B given must be equal on all ranks"):
        clip_loss(x, x, logit_scale=1.0, labels_B=labels, group=group)
