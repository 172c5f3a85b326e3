"""How often a step computes what: rows per tower are counted, gradients are those of one pass."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmtrain.parallel.mesh import ParallelConfig
from tests.parallel.tiny_clip import (
    SIGMOID,
    SOFTMAX,
    TOLERANCE,
    Trained,
    siglip_config,
    tiny_config,
)
from tests.ranks import run_ranks

CONFIG = tiny_config(patch_dropout=0.25)
TOWERS = ("vision", "text")
LOCKED = {
    "nothing": (None, None),
    "vision": (0, None),
    "text": (None, 0),
    "both": (0, 0),
    "vision but its head": (1, None),
}


def rows_per_sample(trained: Trained) -> Counter[str]:
    """Rows that each tower's blocks see in a step, per sample of this rank; those of all stages
    that are here, together."""
    seen: Counter[str] = Counter()

    def count(name: str) -> Any:
        return lambda _, args, kwargs: seen.update({name: args[0].size(0)})

    towers = [(name, getattr(stage, name)) for stage in trained.stages for name in TOWERS]
    hooks = [
        next(iter(tower.transformer.blocks.values())).register_forward_pre_hook(
            count(name), with_kwargs=True
        )
        for name, tower in towers
    ]
    trained.backward(trained.batch(0))
    for hook in hooks:
        hook.remove()
    samples = 8 // trained.layout.size("dp")
    return Counter({name: num // samples for name, num in seen.items() if num % samples == 0})


@pytest.mark.parametrize("locked", LOCKED)
@pytest.mark.parametrize(("loss", "trains", "frozen"), [(SOFTMAX, 2, 1), (SIGMOID, 1, 1)])
def test_rows_per_tower(locked: str, loss: Any, trains: int, frozen: int) -> None:
    """Microbatches cost the softmax a second pass of what trains; the sigmoid none."""
    rows = rows_per_sample(Trained(CONFIG, loss, num_microbatches=4, lock=LOCKED[locked]))
    want = {
        name: frozen if unlocked == 0 else trains
        for name, unlocked in zip(TOWERS, LOCKED[locked], strict=True)
    }
    assert rows == want


@pytest.mark.parametrize("loss", [SOFTMAX, SIGMOID])
def test_one_microbatch_is_one_pass(loss: Any) -> None:
    assert rows_per_sample(Trained(CONFIG, loss)) == {"vision": 1, "text": 1}


class Products(TorchDispatchMode):
    """Counts the products that a loss adds to the gradients of features, a tower's a block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.addmm_.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("trained_logits", [True, False])
@pytest.mark.parametrize("locked", LOCKED)
@pytest.mark.parametrize(("loss", "microbatches"), [(SOFTMAX, 1), (SIGMOID, 1), (SOFTMAX, 4)])
def test_a_loss_computes_what_is_wanted(
    loss: Any, microbatches: int, locked: str, trained_logits: bool
) -> None:
    """No gradient of a frozen tower's features; the multiplier's own comes by the images'."""
    check_products(loss, microbatches, locked, trained_logits, blocks=1)


@pytest.mark.parametrize("trained_logits", [True, False])
@pytest.mark.parametrize("locked", LOCKED)
def test_a_sigmoid_by_parts_computes_what_is_wanted(locked: str, trained_logits: bool) -> None:
    check_products(SIGMOID, 4, locked, trained_logits, blocks=4)


def check_products(
    loss: Any, microbatches: int, locked: str, trained_logits: bool, *, blocks: int
) -> None:
    vision, text = (unlocked == 0 for unlocked in LOCKED[locked])
    trained = Trained(CONFIG, loss, num_microbatches=microbatches, lock=LOCKED[locked])
    for parameter in trained.objective.parameters().values():
        parameter.requires_grad_(trained_logits)
    with Products() as products:
        trained.backward(trained.batch(0))
    assert products.count == blocks * ((not vision or trained_logits) + (not text))
    found = {
        name for name in ("vision", "text") if any(n.startswith(name) for n in trained.gradients())
    }
    assert found == {name for name, frozen in (("vision", vision), ("text", text)) if not frozen}
    logits = trained.objective.parameters().values()
    assert all((p.grad is not None) == trained_logits for p in logits)


@pytest.mark.parametrize("locked", LOCKED)
@pytest.mark.parametrize("loss", [SOFTMAX, SIGMOID])
def test_gradients_are_those_of_one_pass(locked: str, loss: Any) -> None:
    one, four = (
        Trained(siglip_config(), loss, num_microbatches=num, lock=LOCKED[locked]) for num in (1, 4)
    )
    losses = [trained.backward(trained.batch(0)).item() for trained in (one, four)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    want, got = one.gradients(), four.gradients()
    assert want.keys() == got.keys() and "logit_scale" in want
    for name in want:
        error = (got[name] - want[name]).norm() / want[name].norm().clamp(min=1e-30)
        assert error < TOLERANCE or want[name].norm() < 1e-14, name


KINDS = {
    "fsdp": ParallelConfig(dp_shard=2),
    "ddp": ParallelConfig(dp_replicate=2, dp_kind="ddp"),
    "zero1": ParallelConfig(dp_replicate=2, dp_kind="zero1"),
}


def check_ranks(rank: int) -> None:
    for kind, parallel in KINDS.items():
        for loss, trains in ((SOFTMAX, 2), (SIGMOID, 1)):
            for lock in LOCKED.values():
                trained = Trained(CONFIG, loss, parallel=parallel, num_microbatches=2, lock=lock)
                rows = rows_per_sample(trained)
                want = [1 if unlocked == 0 else trains for unlocked in lock]
                assert [rows["vision"], rows["text"]] == want, (kind, loss.kind, lock)
                alone = Trained(CONFIG, loss, num_microbatches=4, lock=lock)
                alone.backward(alone.batch(0))
                ours = alone.gradients()
                for name, gradient in trained.gradients().items():
                    error = (gradient - ours[name]).norm() / ours[name].norm().clamp(min=1e-30)
                    assert error < TOLERANCE or ours[name].norm() < 1e-14, (kind, loss.kind, name)


def check_reductions(rank: int) -> None:
    for kind in ("fsdp", "ddp"):
        for loss in (SOFTMAX, SIGMOID):
            found = set()
            for num in (2, 4):
                trained = Trained(CONFIG, loss, parallel=KINDS[kind], num_microbatches=num)
                trained.backward(trained.batch(0))  # DDP sorts its buckets after the first step
                with Reductions() as reductions:
                    trained.backward(trained.batch(1))
                found.add(reductions.count)
            assert len(found) == 1 and found != {0}, (kind, loss.kind, found)


class Reductions(TorchDispatchMode):
    """Counts the sums over ranks that a step begins."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "reduce" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_more_microbatches_reduce_no_more() -> None:
    """Gradients are reduced once, with the last."""
    run_ranks(check_reductions, 2)


@pytest.mark.slow
def test_two_ranks_pass_as_often() -> None:
    run_ranks(check_ranks, 2)


# With a trained last layer alone, what comes before it hands on tokens that want no gradient.
PIPELINES = [
    *(("1F1B", loss, lock) for lock in LOCKED.values() for loss in (SOFTMAX, SIGMOID)),
    *(
        (schedule, SOFTMAX, lock)
        for schedule in ("Interleaved1F1B", "ZBVZeroBubble", "InterleavedZeroBubble")
        for lock in ((0, None), (0, 1), (1, 1))
    ),
]


def check_stages(rank: int) -> None:
    config = tiny_config(4, patch_dropout=0.25)
    for schedule, loss, lock in PIPELINES:
        name = f"{schedule}, {loss.kind}, {lock}"
        parallel = ParallelConfig(pp=2, schedule=schedule)
        trained = Trained(config, loss, parallel=parallel, num_microbatches=4, lock=lock)
        trained.backward(trained.batch(1))  # torch's stages try themselves out
        for parameter in trained.parameters().values():
            parameter.grad = None
        rows = rows_per_sample(trained)
        once = len(trained.stages)
        want = [once if unlocked == 0 else 2 * once for unlocked in lock]
        assert [rows["vision"], rows["text"]] == want, name
        alone = Trained(config, loss, num_microbatches=4, lock=lock)
        alone.backward(alone.batch(0))
        ours, found = alone.gradients(), trained.gradients()
        held = {n for n, p in trained.parameters().items() if p.requires_grad}
        assert set(found) == held & set(ours), name
        for tensor, gradient in found.items():
            size = ours[tensor].norm()
            error = (gradient - ours[tensor]).norm() / size.clamp(min=1e-30)
            assert error < TOLERANCE or size < 1e-14, f"{name}: {tensor}"


@pytest.mark.slow
def test_stages_run_a_frozen_tower_once() -> None:
    """Its tokens do not travel again either; what has but a trained head runs twice."""
    run_ranks(check_stages, 2)


def test_a_loss_scale_scales_every_gradient() -> None:
    plain, scaled = (Trained(CONFIG, SIGMOID, num_microbatches=2) for _ in range(2))
    for trained, factor in ((plain, 1.0), (scaled, 64.0)):
        trained.objective.step(trained.schedule, trained.batch(0), loss_scale=factor)
    want = plain.gradients()
    for name, gradient in scaled.gradients().items():
        torch.testing.assert_close(gradient, 64 * want[name], rtol=1e-12, atol=1e-15)
