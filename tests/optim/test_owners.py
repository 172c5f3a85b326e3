"""Muon over matrices that lie in parts on four ranks, in every way that a layout cuts them."""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from mmtrain.optim.muon import Muon
from tests.ranks import run_ranks

SHAPES = [(7, 5), (4, 8), (7, 5), (1, 3), (2, 9), (7, 5), (4, 8), (8, 4)]
"""Rows that four ranks share unevenly, or that leave some without any."""
OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}


def draw(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in SHAPES]


def updated(weights: list[torch.Tensor], steps: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """The weights after a step with each list of gradients."""
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    muon = Muon([{"params": parameters}], **OPTIONS)
    for gradients in steps:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        muon.step()
    return [parameter.detach() for parameter in parameters]


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for x, y in zip(got, want, strict=True):
        whole = x.full_tensor() if isinstance(x, DTensor) else x
        torch.testing.assert_close(whole, y, rtol=1e-10, atol=1e-12)


def check(rank: int) -> None:
    want = updated(draw(0), [draw(1), draw(2)])
    flat = init_device_mesh("cpu", (4,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for mesh, placements, sent in (
        (flat, [Shard(0)], 2),
        (flat, [Shard(1)], 2),
        (flat, [Replicate()], 0),
        (square, [Replicate(), Shard(0)], 2),
        (square, [Shard(1), Replicate()], 2),
        (square, [Shard(0), Shard(1)], 0),
    ):
        lists = [[distribute_tensor(t, mesh, placements) for t in draw(s)] for s in range(3)]
        with patch.object(dist, "all_to_all_single", wraps=dist.all_to_all_single) as exchange:
            got = updated(lists[0], lists[1:])
        assert exchange.call_count == 2 * sent
        assert_same(got, want)
    check_strided(square)


def check_strided(mesh: DeviceMesh) -> None:
    """FSDP over tensor parallelism cuts the same rows twice, strided."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6)).double())
    whole, cut = models
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
    parallelize_module(cut, mesh["shard"], plan)
    fully_shard(cut, mesh=mesh["replicate"])
    for model in models:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        muon = Muon([{"params": matrices}], **OPTIONS)
        torch.manual_seed(1)
        model(torch.randn(5, 6, dtype=torch.float64)).square().mean().backward()
        muon.step()
    assert_same(*([p.detach() for p in model.parameters()] for model in (cut, whole)))


@pytest.mark.slow
def test_four_ranks_work_as_one() -> None:
    """The same updates; two exchanges a step carry all matrices of one placement."""
    run_ranks(check, 4)
