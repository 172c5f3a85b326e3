"""Time and price on paper: the arithmetic, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmtrain.build.workload import read_workload
from mmtrain.cli import main
from mmtrain.models.flops import clip_flops
from mmtrain.models.named import named_model
from mmtrain.models.parameters import hidden_matrix_names
from mmtrain.nn.flops import FlopCount
from mmtrain.optim.muon import orthogonalize
from mmtrain.parallel.recompute import apply_recompute
from mmtrain.plan.cost import Assumptions, Cost, cost_of, find_gpu, orthogonalizing, row_work
from mmtrain.plan.layout import plan_layout
from mmtrain.plan.teachers import PlannedTeacher
from mmtrain.recipe import load_recipe
from mmtrain.tasks.terms.distill import DistillConfig
from mmtrain.train.step import LocalSchedule

RECIPE = "configs/debug_clip.toml"
H100 = find_gpu("H100")
OTHER = named_model("ViT-B-32")
GIVEN = ["--train.microbatches", "1", "--train.precision", "bf16", "--train.batch_size", "64"]
GIVEN += ["--model.vision.patch_dropout", "0"]


def cost(world_size: int, *overrides: str, samples: int = 10**6, **assumed: float) -> Cost:
    """On so many H100."""
    workload = read_workload(load_recipe(Path(RECIPE), [*GIVEN, *overrides]))
    plan = plan_layout(workload, world_size=world_size)
    return cost_of(workload, plan, H100, Assumptions(**assumed), num_samples=samples)


def test_work_is_three_forwards_and_the_loss_shared_out_over_the_ranks():
    workload = read_workload(load_recipe(Path(RECIPE), GIVEN))
    plan = plan_layout(workload, world_size=1)
    flops, forward = clip_flops(workload.clip), row_work(workload, plan).forward
    assert forward == pytest.approx(flops.image + flops.text, rel=0.02)
    one = cost(1)
    loss = 6 * 64**2 * workload.clip.embed_dim
    assert one.model_flops == one.hardware_flops == pytest.approx(3 * 64 * forward + loss)
    assert one.sending == one.waiting == 0
    assert one.step == one.computing
    assert one.samples_per_second == pytest.approx(64 / one.step)
    assert one.mfu == pytest.approx(one.model_flops / one.step / (1e12 * H100.bf16_tflops))
    assert one.mfu < 0.35


FULL, SOME = ("--parallel.recompute.kind", "full"), ("--parallel.recompute.kind", "selective")
LOCKED, PARTS = ("--lock.vision", "0"), ("--train.microbatches", "2")


@pytest.mark.parametrize(
    ("overrides", "model"),
    [
        ((), 3),
        (PARTS, 3),
        (FULL, 3),
        ((*FULL, "--parallel.recompute.every", "2"), 3),
        ((*SOME, "--parallel.recompute.keep", '["attention"]'), 3),
        ((*SOME, "--parallel.recompute.keep", '["matmul"]'), 3),
        (LOCKED, None),
        (("--lock.vision", "2", "--lock.text", "1"), None),
        ((*LOCKED, *PARTS), None),
        ((*LOCKED, *PARTS, *FULL), None),
        ((*LOCKED, *PARTS, "--lock.text", "0"), 1),
    ],
    ids=str,
)
def test_what_is_computed_is_what_a_step_calls(overrides, model):
    """By torch's own counter, on tensors that are there."""
    workload = read_workload(load_recipe(Path(RECIPE), [*GIVEN, *overrides]))
    found = row_work(workload, plan_layout(workload, world_size=1))
    clip, num = workload.build_model(), workload.train.microbatches
    apply_recompute(clip.stage(), workload.parallel.recompute)
    schedule = LocalSchedule(clip.stage(), num_microbatches=num)
    size = workload.clip.vision.image_size
    images, rows = torch.zeros(8, 3, size, size, dtype=torch.uint8), workload.rows(8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if num == 1:
            schedule.forward(images, rows).sum().backward()
        else:
            out = schedule.eval(images, rows)
            features = dict(zip(("image", "text"), out.chunk(2, dim=1), strict=True))
            known = {f"{name}_BE": features[name] for name in schedule.frozen_outputs}
            if len(known) < 2:
                schedule.step(images, rows | known, torch.ones_like(out))
    assert found.hardware == pytest.approx(counter.get_total_flops() / 8, rel=0.03)
    if model is not None:
        assert found.model == model * found.forward
    else:
        assert found.forward < found.model <= found.hardware < 3 * found.forward


@pytest.mark.parametrize(("precision", "rate"), [("fp32", 67e12), ("bf16", 989e12)])
def test_a_teacher_computes_too_in_a_format_of_its_own(precision, rate):
    workload = read_workload(load_recipe(Path(RECIPE), GIVEN))
    teacher = PlannedTeacher(
        config=workload.clip, context_length=8, image_size=32, autocasts=precision == "bf16"
    )
    term = DistillConfig(teacher="teacher", precision=precision)
    loss = replace(workload.loss, terms=(term,))
    taught = replace(workload, loss=loss, by_path={"teacher": teacher})
    plan = plan_layout(taught, world_size=2)
    none = replace(taught, by_path={"teacher": replace(teacher, config=OTHER)})
    costs = [cost_of(one, plan, H100, Assumptions(), num_samples=None) for one in (taught, none)]
    flops = [clip_flops(config) for config in (workload.clip, OTHER)]
    more = 64 * (flops[0].image + flops[0].text - flops[1].image - flops[1].text)
    assert costs[0].hardware_flops - costs[1].hardware_flops == pytest.approx(more)
    assert costs[0].computing - costs[1].computing == pytest.approx(more / 2 / rate / 0.35)
    assert costs[0].model_flops == costs[1].model_flops


@pytest.mark.parametrize(
    ("overrides", "owners"),
    [((), 2), (("--parallel.dp_kind", "ddp"), 1), (("--parallel.dp_kind", "zero1"), 2)],
)
def test_muon_computes_too(overrides, owners):
    """Counted as its products are called."""
    words = [*GIVEN, "--optim.kind", "muon", *overrides]
    workload = read_workload(load_recipe(Path(RECIPE), words))
    model = workload.build_model()
    hidden = hidden_matrix_names(model)
    with FlopCount() as count:
        for name, weight in model.named_parameters():
            if name in hidden:
                orthogonalize(weight[None].detach(), dtype=torch.bfloat16)
    found = orthogonalizing(workload, plan_layout(workload, world_size=2))
    assert found == count.total / owners > 0
    assert cost(2, "--optim.kind", "muon").hardware_flops > cost(2).hardware_flops


def test_traffic_is_slower_between_machines_and_waited_for_where_ranks_share_tokens():
    near, far = cost(8), cost(64)
    assert 0 < near.sending < far.sending
    assert near.step == pytest.approx(max(near.computing, near.sending))
    shared = cost(2, "--parallel.tp", "2")
    assert shared.waiting > 0
    assert shared.step == pytest.approx(max(shared.computing, shared.sending) + shared.waiting)


def test_hours_and_price_follow_samples_efficiency_and_rent():
    base = cost(8, price=2.0)
    assert base.hours == pytest.approx(10**6 / 64 * base.step / 3600)
    assert base.price == pytest.approx(base.hours * 8 * 2.0)
    assert cost(8, samples=2 * 10**6).hours == pytest.approx(2 * base.hours)
    assert cost(8).price is None
    assert cost(1, efficiency=0.7).computing < cost(1).computing


def test_a_faster_gpu_is_faster():
    workload = read_workload(load_recipe(Path(RECIPE), GIVEN))
    plan = plan_layout(workload, world_size=1)
    slow = replace(H100, bf16_tflops=H100.bf16_tflops / 2)
    steps = [cost_of(workload, plan, gpu, Assumptions(), num_samples=None) for gpu in (H100, slow)]
    assert steps[0].computing < steps[1].computing and steps[0].hours is None


def test_the_command_prints_it_with_every_assumption(capsys):
    words = ["plan", RECIPE, "--world-size", "8", "--gpu", "h100", "--price", "2.5", *GIVEN]
    assert main([*words, "--samples", "1000000", "--efficiency", "0.3"]) == 0
    said = capsys.readouterr().out
    for part in (
        "on paper, 8 x h100",
        "1,000,000 samples",
        "at 2.5",
        "not measured",
        "30% of that",
    ):
        assert part in said
    assert main([*words, "--samples", "1000000"]) == 0
    assert " 0 at 2.5" not in capsys.readouterr().out  # what is little is not nothing
    assert main(words) == 0
    assert "samples:" in capsys.readouterr().out  # train.steps give them
    assert main(["plan", RECIPE, "--world-size", "8", *GIVEN]) == 0
    assert "on paper" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--price", "2"], "--price 2 has no effect without --gpu"),
        (["--samples", "5"], "--samples 5 has no effect without --gpu"),
        (["--efficiency", "0.5"], "--efficiency 0.5 has no effect without --gpu"),
        (["--gpu", "h900"], "--gpu h900 is unknown; use one of"),
        (["--gpu", "h100", "--efficiency", "35"], "--efficiency 35 is a share of the peak"),
        (["--gpu", "h100", "--train.precision", "fp64"], "train.precision"),
        (["--gpu", "h100", "--price", "-1"], "--price"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words, message, capsys):
    assert main(["plan", RECIPE, "--world-size", "1", *GIVEN, *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
