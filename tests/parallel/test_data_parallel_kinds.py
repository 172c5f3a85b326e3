"""What DDP and ZeRO-1 do beside giving the right numbers (test_seams.py): what is sent, and when;
who holds which optimizer state; Muon. And weights in main memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmtrain.cli import main
from mmtrain.models.parameters import hidden_matrix_names, no_decay_names
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.optimizer import build_optimizers
from mmtrain.parallel import ddp
from mmtrain.parallel.blocks import numbered_blocks
from mmtrain.parallel.mesh import ParallelConfig
from mmtrain.ranks import gather
from tests.parallel.tiny_clip import SOFTMAX, TOLERANCE, Trained, make_batch, tiny_config, worst
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]
CONFIG = tiny_config(patch_dropout=0.25)
DDP, ZERO1 = ParallelConfig(dp_kind="ddp"), ParallelConfig(dp_kind="zero1")


class Sent(TorchDispatchMode):
    """Counts a collective, where it carries more than features do."""

    def __init__(self, collective: Any) -> None:
        super().__init__()
        self.collective, self.count = collective, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self.collective:
            sent = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
            # Features go with what is said of their rows, as bytes.
            self.count += any(x.numel() > 600 and x.is_floating_point() for x in sent)
        return func(*args, **(kwargs or {}))


def num_reductions(microbatches: int) -> int:
    """Buckets that a step sends."""
    trained = Trained(CONFIG, SOFTMAX, parallel=DDP, num_microbatches=microbatches)
    with Sent(torch.ops.c10d.allreduce_.default) as sent:
        trained.backward(make_batch())
    return sent.count


def check_reduced_once() -> None:
    """Microbatches add their gradients up here; only the last one's backward sends them."""
    assert num_reductions(4) == num_reductions(1) > 0


def check_buckets(rank: int) -> None:
    """Gradients of any number of buckets, with a parameter that nothing uses and one that is
    frozen, are the mean over the ranks; those of microbatches before the last are added first."""
    x = torch.arange(6.0).view(2, 3) * (rank + 1)
    for limit in (8, 1 << 20):
        ddp.BUCKET_BYTES = limit
        torch.manual_seed(rank)  # the first rank's weights count
        stage = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        stage.register_parameter("idle", nn.Parameter(torch.zeros(5)))
        stage[1].bias.requires_grad_(False)
        replica = ddp.Replica(stage, group=dist.group.WORLD)
        for num_microbatches in (1, 2, 1):
            alone = [p for p in stage.parameters() if p.requires_grad and p.numel() != 5]
            want = torch.autograd.grad(num_microbatches * stage(x).square().sum(), alone)
            for i in range(num_microbatches):
                replica.averages = i == num_microbatches - 1
                replica(x).square().sum().backward()
            means = [sum(parts) / len(parts) for parts in zip(*gather(want), strict=True)]
            assert [p for p in stage.parameters() if p.grad is not None] == alone
            for parameter, mean in zip(alone, means, strict=True):
                torch.testing.assert_close(parameter.grad, mean)
            replica.zero_grad()


def check_unequal_use(rank: int) -> None:
    """Ranks that use other parameters than the rest would mix up their sums: refused by name."""
    stage = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    ddp.Replica(stage, group=dist.group.WORLD)
    with pytest.raises(ValueError, match=r"no gradient for a.weight, b.weight"):
        stage["ab"[rank]](torch.ones(1, 2)).sum().backward()


def check_fsdp_gathers() -> None:
    """Every block's weights are gathered forward and backward, and the next block's beside it; what
    is left is gathered once. A pass without backward leaves nothing gathered."""
    trained = Trained(CONFIG, SOFTMAX, parallel=ParallelConfig())
    stage = trained.schedule.stage
    blocks = [block for _, block in numbered_blocks(stage)]
    for i, block in enumerate(blocks):
        state = block._get_fsdp_state()
        assert state._states_to_forward_prefetch == [
            b._get_fsdp_state() for b in blocks[i + 1 : i + 2]
        ]
        assert state._states_to_backward_prefetch == [b._get_fsdp_state() for b in blocks[:i][-1:]]
    batch = make_batch()
    trained.backward(batch)
    with Sent(torch.ops.c10d._allgather_base_.default) as gathered:
        trained.backward(batch)
    assert gathered.count == 2 * len(blocks) + 1
    trained.schedule.eval(batch.images_BCHW, trained.objective.rows(batch))
    assert all(isinstance(parameter, DTensor) for parameter in stage.parameters())


def check_state_is_shared_out() -> None:
    """Every parameter's moments are on one rank, about half of them on each."""
    trained = Trained(CONFIG, SOFTMAX, parallel=ZERO1)
    held = {
        name: tensors["exp_avg"].numel()
        for name, tensors in trained.optimizers.state_dict().items()
    }
    parts = gather(held)
    names = [name for part in parts for name in part]
    assert sorted(names) == sorted(trained.parameters())
    shares = [sum(part.values()) for part in parts]
    assert max(shares) < 1.02 * min(shares)


def train_with_muon(**layout: Any) -> Trained:
    """Three steps of Muon, in fp64, with AdamW for the rest."""
    trained = Trained(CONFIG, SOFTMAX, **layout)
    model = trained.model
    trained.optimizers = build_optimizers(
        trained.parameters().items(),
        OptimConfig(kind="muon", lr=1e-3),
        no_decay=no_decay_names(model),
        hidden_matrices=hidden_matrix_names(model),
        zero_group=trained.layout.zero_group,
    )
    trained.train(num_steps=3)
    return trained


def check_muon() -> None:
    """Each rank makes its own matrices orthogonal: the single process's weights."""
    want, got = train_with_muon(), train_with_muon(parallel=ZERO1, num_microbatches=2)
    weights = {n: p.detach() for n, p in want.parameters().items()}
    error, name = worst({n: p.detach() for n, p in got.parameters().items()}, weights)
    assert error <= TOLERANCE, f"{name} is off by {error:.1e}"
    kinds = {frozenset(tensors) for tensors in got.optimizers.state_dict().values()}
    assert frozenset({"momentum_buffer"}) in kinds


def check_two_formats() -> None:
    """bf16 weights beside the logits' fp32 scale, which one buffer cannot hold."""
    trained = Trained(CONFIG, SOFTMAX, parallel=ZERO1, precision="bf16-pure")
    before = {n: p.detach().clone() for n, p in trained.parameters().items()}
    trained.train(num_steps=1)
    moved = {n: p.detach() for n, p in trained.parameters().items()}
    assert not torch.equal(moved["logit_scale"], before["logit_scale"])
    sums = {n: p.double().sum().item() for n, p in moved.items()}
    assert all(part == sums for part in gather(sums))


def check_all(rank: int) -> None:
    check_reduced_once()
    check_buckets(rank)
    check_unequal_use(rank)
    check_fsdp_gathers()
    check_state_is_shared_out()
    check_muon()
    check_two_formats()


def test_two_ranks() -> None:
    run_ranks(check_all, 2)


def steps(trained: Trained, first: int, last: int) -> list[float]:
    """Updates on batches first, ..., last - 1 -> their losses."""
    losses = []
    for step in range(first, last):
        losses.append(trained.backward(make_batch(step=step)).item())
        trained.clip()
        trained.optimizers.step()
        trained.optimizers.zero_grad()
    return losses


@torch.no_grad()
def copy_run(source: Trained, target: Trained) -> None:
    """Give a fresh training the weights and the optimizer's state of another one."""
    for name, parameter in target.parameters().items():
        parameter.copy_(source.parameters()[name])
    states = source.optimizers.state_dict()
    for name, tensors in target.optimizers.state_dict().items():
        for key, tensor in tensors.items():
            tensor.copy_(states[name][key])


def check_resumed_bits(rank: int) -> None:
    """A run that goes on adds up in the order of one that was not interrupted, on four ranks."""
    for parallel in (DDP, ZERO1):
        whole, resumed = (
            Trained(CONFIG, SOFTMAX, parallel=parallel, precision="fp32") for _ in range(2)
        )
        steps(whole, 0, 2)
        copy_run(whole, resumed)
        assert steps(resumed, 2, 4) == steps(whole, 2, 4)
        for name, parameter in resumed.parameters().items():
            assert torch.equal(parameter, whole.parameters()[name]), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_ranks_resume_bit_for_bit() -> None:
    run_ranks(check_resumed_bits, 4)


def losses_on_a_gpu(folder: Path, *words: str) -> list[float]:
    """Of the debug recipe, by step."""
    data = str(ROOT / "mmtrain/demo/debug/train.tar")
    command = ["train", str(ROOT / "configs/debug_clip.toml"), "--run-dir", str(folder)]
    command += ["--data.train", data, "--train.device", "cuda", "--train.log_every", "1", *words]
    assert main(command) == 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@pytest.mark.gpu
@pytest.mark.parametrize("microbatches", ["1", "2"])
def test_offloaded_weights_train_as_others_do(microbatches: str, tmp_path: Path) -> None:
    """On one GPU: the losses of a run without it, then a checkpoint of it goes on without it."""
    words = ("--train.microbatches", microbatches, "--train.steps")
    offload = ("--parallel.cpu_offload", "true")
    want = losses_on_a_gpu(tmp_path / "plain", *words, "6")
    got = losses_on_a_gpu(tmp_path / "offload", *words, "6", *offload)
    assert got == pytest.approx(want, rel=1e-3)
    longer = losses_on_a_gpu(tmp_path / "plain", *words, "8", "--resume-with-changes")
    got = losses_on_a_gpu(tmp_path / "offload", *words, "8", "--resume-with-changes")
    assert got[-2:] == pytest.approx(longer[-2:], rel=1e-3)
