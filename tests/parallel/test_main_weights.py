"""bf16-main: computed with in bf16, stored, summed and updated in fp32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.counting import Counts
from mmtrain.models import Clip, ClipConfig
from mmtrain.models.vqa import Vqa
from mmtrain.parallel.apply import parallelize
from mmtrain.parallel.compile import cpp_compiler
from mmtrain.parallel.main_weights import copies_in_bf16
from mmtrain.parallel.mesh import Layout, ParallelConfig
from mmtrain.parallel.recompute import RecomputeConfig
from mmtrain.tasks.answering import answer_objective
from mmtrain.train.step import build_schedule
from tests.parallel.tiny_answers import BCE, both_heads, make_questions, writing
from tests.parallel.tiny_clip import (
    CPU,
    SOFTMAX,
    Trained,
    make_batch,
    modern_config,
    siglip_config,
    tiny_config,
    worst,
)
from tests.ranks import run_ranks

NOISE = "attention.k.bias"
"""It has no true gradient."""


def gradients(config: ClipConfig | None = None, **how: Any) -> dict[str, Tensor]:
    """Of one batch, but for those that are noise."""
    trained = Trained(config or tiny_config(), SOFTMAX, **{"precision": "bf16-main", **how})
    trained.backward(make_batch())
    return {name: g for name, g in trained.gradients().items() if not name.endswith(NOISE)}


@pytest.mark.parametrize("make", [tiny_config, modern_config, siglip_config])
def test_a_step_is_that_of_bf16_weights_with_fp32_gradients(make: Callable[[], Any]) -> None:
    """Of every module, to the bit; before it and after it all is fp32."""
    trained = Trained(make(), SOFTMAX, precision="bf16-main")
    seen: dict[str, set[torch.dtype]] = {}
    for name, module in trained.stages[0].named_modules():
        if module._parameters:
            module.register_forward_pre_hook(
                lambda part, _, name=name: seen.update(
                    {name: {p.dtype for p in part._parameters.values() if p is not None}}
                )
            )
    names = set(trained.parameters())
    loss = trained.backward(make_batch())
    assert len(seen) > 20 and set.union(*seen.values()) == {torch.bfloat16}
    assert set(trained.parameters()) == names
    for parameter in trained.parameters().values():
        assert isinstance(parameter, nn.Parameter) and parameter.dtype == torch.float32
    found, pure = trained.gradients(), Trained(make(), SOFTMAX, precision="bf16-pure")
    assert loss == pure.backward(make_batch())
    wanted = pure.gradients()
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name].float()) for name in found)


@pytest.mark.parametrize("kind", ["full", "selective"])
@pytest.mark.parametrize("microbatches", [1, 4])
def test_recompute_has_the_same_bits(kind: Any, microbatches: int) -> None:
    """What runs again in the backward runs with copies again."""
    parallel = ParallelConfig(recompute=RecomputeConfig(kind=kind))
    found = gradients(parallel=parallel, num_microbatches=microbatches)
    wanted = gradients(num_microbatches=microbatches)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_gradients_of_microbatches_are_added_up_in_fp32() -> None:
    """A sum in bf16 stands still where what is added is below its last digit."""
    main = nn.Parameter(torch.ones(3))
    stored = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    for _ in range(1000):
        for weight in (copies_in_bf16([main])[0], stored):
            weight.sum().backward()
    assert main.grad is not None and main.grad.tolist() == [1000] * 3
    assert stored.grad is not None and stored.grad.tolist() == [256] * 3


def test_updates_below_eight_bits_are_kept() -> None:
    """At a learning rate of 1e-6 hardly a weight of bf16-pure moves."""
    moved = {}
    for precision in ("bf16-main", "bf16-pure"):
        trained = Trained(tiny_config(), SOFTMAX, precision=precision)
        weight = trained.parameters()["vision.transformer.blocks.0.attention.q.weight"]
        before = weight.detach().clone()
        trained.backward(make_batch())
        trained.optimizers.set_lr(1e-3)
        trained.optimizers.step()
        moved[precision] = (weight != before).float().mean().item()
    assert moved["bf16-main"] > 0.99 and moved["bf16-pure"] < 0.1


@pytest.mark.parametrize("frozen", [(), (0, 2), (0, 1, 2)])
def test_copies_know_what_trains(frozen: tuple[int, ...]) -> None:
    """Unequal sizes, scalars among them; what nothing used has no gradient, as without copies."""
    shapes = ((3, 5), (), (7,), (2, 1, 3))
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for index in frozen:
        weights[index].requires_grad_(False)
    copies = copies_in_bf16(weights)
    for index, (copy, weight) in enumerate(zip(copies, weights, strict=True)):
        assert copy.requires_grad == (index not in frozen)
        assert torch.equal(copy, weight.bfloat16()) and copy.shape == weight.shape
        assert copy.is_contiguous() and copy.data_ptr() % 16 == 0
    sum((copy * 3).sum() for copy in copies[:3]).backward() if len(frozen) < 3 else None
    for index, weight in enumerate(weights):
        used = index < 3 and index not in frozen and len(frozen) < 3
        assert (weight.grad is not None) == used
        assert not used or torch.equal(weight.grad, torch.full_like(weight, 3.0))
    assert tuple(copies_in_bf16([])) == ()


def test_all_copies_are_one_operation_each_way() -> None:
    """However many weights; autograd would cast gradients too, one by one."""
    weights = [nn.Parameter(torch.randn(size)) for size in (3, 5, 7)]
    with Counts() as counts:
        torch.cat([*copies_in_bf16(weights)]).sum().backward()
    assert counts.casts == 2 and counts.operations["empty"] == 2
    assert [weight.grad.dtype for weight in weights if weight.grad is not None] == [
        torch.float32
    ] * 3


def test_weights_are_whole_again_after_an_error() -> None:
    """A run that is told of a bad batch may go on."""
    trained = Trained(tiny_config(), SOFTMAX, precision="bf16-main")
    images = make_batch().images_BCHW.float()
    with pytest.raises(ValueError, match="must be uint8"):
        trained.stages[0](images, tokens_BT=make_batch().tokens_BT, length_B=None)
    assert {p.dtype for p in trained.parameters().values()} == {torch.float32}


@pytest.mark.parametrize("make", [both_heads, writing])
def test_answering_models_agree_with_bf16_weights(make: Callable[[], Any]) -> None:
    """A tied head is one weight with its embedding: one copy, and the sum of both gradients."""
    found = {}
    for precision in ("bf16-main", "bf16-pure"):
        clip, config = make()
        model = Vqa(clip, config).init_weights(0)
        model.load_state_dict(Clip(clip).init_weights(0).state_dict(), strict=False)
        layout = Layout(device=CPU, config=ParallelConfig())
        stages = parallelize(model, layout, precision=precision)
        objective = answer_objective(model, BCE, layout=layout, seed=3)
        stages[0].set_criterion(objective.criterion)  # pyright: ignore[reportCallIssue]
        schedule = build_schedule(stages, layout, num_microbatches=1, batch_size=8)
        objective.step(schedule, make_questions(with_answers=True))
        found[precision] = {
            name: p.grad.float() for name, p in stages[0].named_parameters() if p.grad is not None
        }
    main, pure = found["bf16-main"], found["bf16-pure"]
    assert main.keys() == pure.keys()
    moved = [name for name, g in pure.items() if g.any() and not name.endswith(NOISE)]
    assert len(moved) > 40 and not any(main[name].any() for name in pure if not pure[name].any())
    # The pure one rounds the sum of the tied weight's two gradients once more.
    error, name = worst({name: main[name] for name in moved}, pure)
    assert error < 5e-3, f"{name} is off by {error:.1e}"


def compare_layouts(rank: int) -> None:
    wanted = gradients(tiny_config(4))
    for parallel, microbatches in (
        (ParallelConfig(dp_kind="ddp"), 1),
        (ParallelConfig(dp_kind="zero1"), 2),
        (ParallelConfig(dp_shard=2), 1),
        (ParallelConfig(pp=2, schedule="1F1B"), 4),
        (ParallelConfig(pp=2, schedule="ZBVZeroBubble"), 4),
        (ParallelConfig(tp=2), 1),
    ):
        found = gradients(tiny_config(4), parallel=parallel, num_microbatches=microbatches)
        error, name = worst(found, {name: wanted[name] for name in found})
        assert error < 0.1, f"{parallel}: {name} is off by {error:.1e}"
    gathered = gradients(tiny_config(4), parallel=ParallelConfig(dp_shard=2), precision="bf16-fsdp")
    replicated = gradients(tiny_config(4), parallel=ParallelConfig(dp_kind="ddp"))
    assert all(torch.equal(replicated[name], gathered[name]) for name in gathered)
    dist.barrier()


@pytest.mark.slow
def test_every_layout_has_one_process_gradients() -> None:
    """Within bf16's rounding; FSDP's own format is the same to the bit."""
    run_ranks(compare_layouts, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's compiler looks
@pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
def test_compiled_blocks_agree() -> None:
    """Their code holds the casts, and is one graph."""
    torch._dynamo.utils.counters.clear()
    compiled, wanted = gradients(compile=True), gradients(precision="fp32")
    error, name = worst(compiled, wanted)
    assert error < 0.1 and compiled.keys() == wanted.keys(), f"{name} is off by {error:.1e}"
    assert not torch._dynamo.utils.counters["graph_break"]
