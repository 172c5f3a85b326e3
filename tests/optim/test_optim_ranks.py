"""Clipping, AdamW, Muon and the average over FSDP2, tensor parallel and pipeline ranks, in fp64."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from mmtrain.optim.clip import Rider, clip_gradients
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.ema import Ema
from mmtrain.optim.optimizer import build_optimizers
from tests.ranks import run_ranks

MAX_NORM = 0.05


class Tiny(nn.Module):
    """Odd sizes, so that shards differ; `scale` lives outside of what is sharded."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.second = nn.Linear(5, 1)

    def forward(self, x_BD):
        return self.second(self.norm(self.first(x_BD)).tanh()).square().mean()


def fresh():
    torch.manual_seed(0)
    return Tiny().double(), nn.Parameter(torch.tensor(0.7, dtype=torch.float64))


def named(model, scale):
    return {**dict(model.named_parameters()), "logit_scale": scale}


def build(model, scale):
    parameters = named(model, scale)
    no_decay = {name for name, p in parameters.items() if p.ndim <= 1}
    config = OptimConfig(kind="muon", lr=1e-2, muon_lr=1e-2)
    return build_optimizers(
        parameters.items(), config, no_decay=no_decay, hidden_matrices={"first.weight"}
    )


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 6, dtype=torch.float64, generator=generator) for _ in range(3)]


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train(model, scale, rows):
    """Three clipped Muon + AdamW steps with an average; the norms before clipping."""
    optimizers, ema = build(model, scale), Ema(named(model, scale).items(), decay=0.5)
    norms = []
    for step, x_BD in enumerate(batches()):
        (model(x_BD[rows]) * scale.exp()).backward()
        if dist.is_initialized():
            dist.all_reduce(scale.grad, op=dist.ReduceOp.AVG)
        norms.append(clip_gradients([*model.parameters(), scale], MAX_NORM))
        optimizers.step()
        optimizers.zero_grad()
        ema.update(step)
    return torch.stack(norms), ema


def assert_close(got, want):
    torch.testing.assert_close(full(got).detach(), want.detach(), rtol=1e-9, atol=1e-12)


def check_fsdp(rank):
    want, want_scale = fresh()
    dist_free_norms, want_ema = reference_train(want, want_scale)
    got, scale = fresh()
    fully_shard(got, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("dp",)))
    norms, ema = train(got, scale, slice(rank, None, 2))
    assert_close(norms, dist_free_norms)
    for name, p in named(want, want_scale).items():
        assert_close(named(got, scale)[name], p)
        assert_close(ema.state_dict()[name], want_ema.state_dict()[name])
    check_applied(ema, want_ema, got, want)


def reference_train(model, scale):
    """`train` on the whole batch by one process, though this one is a rank."""
    optimizers, ema = build(model, scale), Ema(named(model, scale).items(), decay=0.5)
    norms = []
    for step, x_BD in enumerate(batches()):
        (model(x_BD) * scale.exp()).backward()
        norms.append(torch.nn.utils.clip_grad_norm_([*model.parameters(), scale], MAX_NORM))
        optimizers.step()
        optimizers.zero_grad()
        ema.update(step)
    return torch.stack(norms), ema


def check_applied(ema, want_ema, got, want):
    """The average is what FSDP computes with inside the context, and no longer afterwards."""
    x_BD = batches()[0]
    before = got(x_BD).item()
    with want_ema.applied():
        averaged = want(x_BD).item()
    with torch.no_grad():
        got(x_BD)
        with ema.applied(got):
            assert abs(got(x_BD).item() - averaged) < 1e-12
        assert got(x_BD).item() == before


def check_mixed_meshes(rank):
    """Shards on two meshes, pending sums, replicas and plain tensors, in one norm."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    other = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    grads = [torch.randn(5, 3) for _ in range(6)]
    placed = [
        distribute_tensor(grads[0], mesh, [Shard(0)]),
        distribute_tensor(grads[1], mesh, [Shard(1)]),
        distribute_tensor(grads[2], mesh, [Replicate()]),
        DTensor.from_local(grads[3] * (0.25, 0.75)[rank], mesh, [Partial()]),
        distribute_tensor(grads[4], other, [Shard(0), Shard(0)]),
        grads[5],
    ]
    parameters, whole = [], []
    for gradient, placed_gradient in zip(grads, placed, strict=True):
        parameters.append(nn.Parameter(torch.zeros_like(placed_gradient)))
        parameters[-1].grad = placed_gradient.clone()
        whole.append(nn.Parameter(torch.zeros_like(gradient)))
        whole[-1].grad = gradient.clone()
    parameters.append(nn.Parameter(torch.zeros(2)))  # without a gradient
    rider = Rider(values_N=torch.tensor([rank, 1.0, 0.0], dtype=torch.float64))
    norm = clip_gradients(parameters, 1.0, rider=rider)
    assert not rider.is_summed, "some gradients are in no sum, and one rank's may be spoilt"
    want = torch.nn.utils.clip_grad_norm_(whole, 1.0)
    torch.testing.assert_close(norm.float(), want)
    for got, p in zip(parameters, whole, strict=False):
        torch.testing.assert_close(full(got.grad), p.grad)


def check_rider(rank):
    """What goes with the one sum of all shards is summed, and the norm is what it was."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    gradient = torch.arange(15.0).view(5, 3)
    parameter = nn.Parameter(torch.zeros_like(distribute_tensor(gradient, mesh, [Shard(0)])))
    parameter.grad = distribute_tensor(gradient, mesh, [Shard(0)])
    rider = Rider(values_N=torch.tensor([rank, 1.0, 0.0], dtype=torch.float64))
    norm = clip_gradients([parameter], None, rider=rider)
    torch.testing.assert_close(norm.float(), gradient.norm())
    assert rider.is_summed and rider.values_N.tolist() == [1, 2, 0]


def check_stages(rank):
    """Each rank is a stage with its own parameters; the scale is on both and counts once."""
    torch.manual_seed(0)
    grads = [torch.randn(4, 3), torch.randn(7)]
    mine, scale = nn.Parameter(torch.zeros_like(grads[rank])), nn.Parameter(torch.tensor(0.0))
    mine.grad, scale.grad = grads[rank].clone(), torch.tensor(2.0)
    rider = Rider(values_N=torch.ones(2, dtype=torch.float64))
    norm = clip_gradients([mine], 1.0, pp_group=dist.group.WORLD, shared=[scale], rider=rider)
    assert not rider.is_summed and rider.values_N.tolist() == [1, 1], "no sum of shards to go with"
    want = torch.cat([grads[0].flatten(), grads[1], torch.tensor([2.0])]).norm()
    torch.testing.assert_close(norm.float(), want)
    torch.testing.assert_close(scale.grad, 2.0 / want)
    torch.testing.assert_close(mine.grad, grads[rank] / want)


def check_all(rank):
    check_fsdp(rank)
    check_mixed_meshes(rank)
    check_rider(rank)
    check_stages(rank)


def test_two_ranks():
    run_ranks(check_all, 2)


def test_only_measured():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([3.0, 0.0, 4.0])
    copied = copy.deepcopy(p.grad)
    assert clip_gradients([p], None).item() == 5.0
    assert torch.equal(p.grad, copied)


def test_small_gradients_are_left_alone():
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    p.grad = torch.tensor([0.3, 0.4], dtype=torch.float64)
    assert clip_gradients([p], 1.0).item() == 0.5
    assert p.grad.tolist() == [0.3, 0.4]
