"""Number formats, locked towers and the scale's limits, under every kind of layout."""

import math

import pytest
import torch
import torch.distributed as dist

from mmtrain.errors import UsageError
from mmtrain.models import Clip
from mmtrain.parallel.blocks import numbered_blocks
from mmtrain.parallel.mesh import ParallelConfig
from mmtrain.tasks.config import LossSection
from mmtrain.tasks.contrastive import contrastive_objective
from tests.parallel.tiny_clip import (
    SIGMOID,
    SOFTMAX,
    Trained,
    make_batch,
    tiny_config,
    worst,
)
from tests.ranks import run_ranks

LAYOUTS = {
    "fsdp": (ParallelConfig(dp_shard=2), 2),
    "tp": (ParallelConfig(tp=2), 2),
    "pp": (ParallelConfig(pp=2), 4),
    "zero1": (ParallelConfig(dp_kind="zero1"), 2),
}
CONFIG = tiny_config(patch_dropout=0.25)
# Unlocked layers of vision and text, None where all train. Under pp = 2 the second leaves the first
# stage nothing to train; with the last nothing trains but the logits' scale.
LOCKS = ((0, None), (1, 0), (0, 0))
# A key's bias has no true gradient, and the softmax loss gives the bias of the logits none.
COMPARED = {
    name
    for name, _ in Clip(CONFIG).named_parameters()
    if not name.endswith("attention.k.bias") and name != "logit_bias"
}


def gradients(trained: Trained) -> dict[str, torch.Tensor]:
    trained.backward(make_batch())
    return trained.gradients()


def check_locks(name: str, parallel: ParallelConfig, microbatches: int) -> None:
    """Locked weights do not move, the others get the single process's gradients."""
    for lock in LOCKS[:2]:
        want = Trained(CONFIG, SOFTMAX, lock=lock)
        got = Trained(CONFIG, SOFTMAX, lock=lock, parallel=parallel, num_microbatches=microbatches)
        wanted, found = gradients(want), gradients(got)
        trained = {n for n, p in got.parameters().items() if p.requires_grad}
        assert set(found) == trained, f"{name}, lock {lock}"
        error, tensor = worst(found, wanted)
        assert error < 1e-9, f"{name}, lock {lock}: {tensor} is off by {error:.1e}"
        assert got.clip() == pytest.approx(want.clip(), rel=1e-9), f"{name}, lock {lock}"
        got.optimizers.step()


def check_formats(name: str, parallel: ParallelConfig, microbatches: int) -> None:
    """16-bit gradients are near fp32's: nothing is lost or counted twice by a format's way."""
    want = gradients(Trained(CONFIG, SOFTMAX, precision="fp32"))
    gathered = ["bf16-fsdp"] if name == "fsdp" else []
    for precision in ("bf16", "bf16-main", "bf16-pure", "fp16", *gathered):
        got = Trained(
            CONFIG,
            SOFTMAX,
            parallel=parallel,
            num_microbatches=microbatches,
            precision=precision,
        )
        stored = torch.bfloat16 if precision == "bf16-pure" else torch.float32
        assert {p.dtype for p in got.stage_parameters().values()} == {stored}
        assert got.objective.logits.scale.dtype == torch.float32
        found = {n: g.float() for n, g in gradients(got).items()}
        assert set(found) == set(got.parameters()), f"{name}, {precision}"
        found = {n: g for n, g in found.items() if n in COMPARED}
        error, tensor = worst(found, want)
        assert error < 0.25, f"{name}, {precision}: {tensor} is off by {error:.1e}"
        got.clip()
        got.optimizers.step()


def check_gathered_format(parallel: ParallelConfig, microbatches: int) -> None:
    """bf16-fsdp computes with bf16 weights, between fp32 shards and fp32 gradients."""
    trained = Trained(
        CONFIG, SOFTMAX, parallel=parallel, num_microbatches=microbatches, precision="bf16-fsdp"
    )
    seen = set()
    _, block = next(numbered_blocks(trained.stages[0]))
    block.register_forward_pre_hook(lambda one, _: seen.update(p.dtype for p in one.parameters()))
    before = trained.backward(make_batch()).item()
    assert seen == {torch.bfloat16}
    assert {g.dtype for g in trained.gradients().values()} == {torch.float32}
    trained.clip()
    trained.optimizers.step()
    trained.optimizers.zero_grad()
    assert trained.backward(make_batch()).item() < before


def check_needs_fsdp() -> None:
    """Where no weights are gathered, bf16-fsdp is refused in a line."""
    for parallel in (None, ParallelConfig(dp_kind="ddp"), ParallelConfig(tp=2)):
        with pytest.raises(UsageError, match=r'"bf16-fsdp" needs weights that FSDP gathers: '):
            Trained(CONFIG, SOFTMAX, parallel=parallel, precision="bf16-fsdp")


def check_fixed_shapes(parallel: ParallelConfig, microbatches: int) -> None:
    """A pipeline refuses another number of tokens on every rank, where it would hang."""
    trained = Trained(CONFIG, SOFTMAX, parallel=parallel, num_microbatches=microbatches)
    batch = make_batch()
    trained.backward(batch)
    object.__setattr__(batch, "tokens_BT", batch.tokens_BT[:, :9])
    with pytest.raises(ValueError, match=r"tokens_BT is \[8, 9\] and was \[8, 11\].* pad every"):
        trained.backward(batch)


def check_all(rank: int) -> None:
    for name, (parallel, microbatches) in LAYOUTS.items():
        check_locks(name, parallel, microbatches)
        check_formats(name, parallel, microbatches)
    check_gathered_format(*LAYOUTS["fsdp"])
    check_needs_fsdp()
    check_fixed_shapes(*LAYOUTS["pp"])
    dist.barrier()


@pytest.mark.slow
def test_two_ranks() -> None:
    run_ranks(check_all, 2)


@pytest.mark.parametrize("precision", ["bf16", "bf16-main", "bf16-pure", "fp16"])
@pytest.mark.parametrize("microbatches", [1, 4])
def test_formats_in_one_process(precision: str, microbatches: int) -> None:
    """Autocast keeps weights that the pass without gradients has cast: they must not serve the
    pass with gradients, or most weights would get none."""
    want = gradients(Trained(CONFIG, SOFTMAX, precision="fp32"))
    trained = Trained(CONFIG, SOFTMAX, precision=precision, num_microbatches=microbatches)
    found = {n: g.float() for n, g in gradients(trained).items()}
    assert set(found) == set(want)
    found = {n: g for n, g in found.items() if n in COMPARED}
    error, tensor = worst(found, want)
    assert error < 0.25, f"{tensor} is off by {error:.1e}"


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("lock", LOCKS)
def test_locked_towers_in_one_process(lock, microbatches: int) -> None:
    trained = Trained(CONFIG, SOFTMAX, lock=lock, num_microbatches=microbatches)
    before = {n: p.detach().clone() for n, p in trained.parameters().items()}
    trained.backward(make_batch())
    trained.optimizers.step()
    for name, parameter in trained.parameters().items():
        moved = not torch.equal(parameter, before[name])
        if name in COMPARED:
            assert moved == parameter.requires_grad, name


@pytest.mark.parametrize("loss", [SOFTMAX, SIGMOID])
def test_scale_stays_in_its_limits(loss: LossSection) -> None:
    """The multiplier, not its logarithm, is limited; the bias is free."""
    objective = Trained(tiny_config(), loss).objective
    assert objective.logits.bias is not None
    for start, end in ((9.0, math.log(100)), (-3.0, 0.0), (2.0, 2.0)):
        objective.logits.scale.data.fill_(start)
        objective.logits.bias.data.fill_(-start)
        objective.clamp()
        assert objective.logits.scale.item() == pytest.approx(end, rel=1e-15)
        assert objective.logits.bias.item() == -start


def test_limit_of_the_scale_is_a_setting() -> None:
    objective = Trained(tiny_config(), LossSection(max_logit_scale=30.0)).objective
    objective.logits.scale.data.fill_(9.0)
    objective.clamp()
    assert objective.logits.scale.exp().item() == pytest.approx(30.0)
    with pytest.raises(ValueError, match=r"max_logit_scale = 0.5 must be at least 1"):
        LossSection(max_logit_scale=0.5)


def test_a_batch_without_a_valid_row_moves_nothing() -> None:
    """Its loss and every gradient are zero, not NaN."""
    batch = make_batch()
    batch.valid_B.zero_()
    trained = Trained(CONFIG, SOFTMAX)
    assert trained.backward(batch) == 0
    assert not any(gradient.any() for gradient in trained.gradients().values())


def test_sigmoid_without_a_bias_is_refused() -> None:
    trained = Trained(tiny_config(), SOFTMAX)
    trained.model.logit_bias = None
    with pytest.raises(ValueError, match=r"needs a learned bias; set model.init_logit_bias"):
        contrastive_objective(trained.model, SIGMOID, layout=trained.layout, seed=0)
