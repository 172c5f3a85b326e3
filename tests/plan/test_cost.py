"""Time and price on paper: the arithmetic, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from mmtrain.build.workload import read_workload
from mmtrain.cli import main
from mmtrain.models.flops import clip_flops
from mmtrain.plan.cost import Assumptions, Cost, cost_of, find_gpu, forward_flops
from mmtrain.plan.layout import plan_layout
from mmtrain.recipe import load_recipe

RECIPE = "configs/debug_clip.toml"
H100 = find_gpu("H100")
GIVEN = ["--train.microbatches", "1", "--train.precision", "bf16", "--train.batch_size", "64"]
GIVEN += ["--model.vision.patch_dropout", "0"]


def cost(world_size: int, *overrides: str, samples: int = 10**6, **assumed: float) -> Cost:
    """On so many H100."""
    workload = read_workload(load_recipe(Path(RECIPE), [*GIVEN, *overrides]))
    plan = plan_layout(workload, world_size=world_size)
    return cost_of(workload, plan, H100, Assumptions(**assumed), num_samples=samples)


def test_work_is_three_forwards_and_the_loss_shared_out_over_the_ranks():
    workload = read_workload(load_recipe(Path(RECIPE), GIVEN))
    layout = plan_layout(workload, world_size=1).layout
    flops, forward = clip_flops(workload.clip), forward_flops(workload, layout)
    assert forward == pytest.approx(flops.image + flops.text, rel=0.02)
    one = cost(1)
    loss = 6 * 64**2 * workload.clip.embed_dim
    assert one.model_flops == one.hardware_flops == pytest.approx(3 * 64 * forward + loss)
    assert one.sending == one.waiting == 0
    assert one.step == one.computing
    assert one.samples_per_second == pytest.approx(64 / one.step)
    assert one.mfu == pytest.approx(one.model_flops / one.step / (1e12 * H100.bf16_tflops))
    assert one.mfu < 0.35


@pytest.mark.parametrize(
    ("overrides", "forwards"),
    [
        ((), 3),
        (("--train.microbatches", "2"), 4),
        (("--parallel.recompute.kind", "full"), 4),
        (("--parallel.recompute.kind", "full", "--parallel.recompute.every", "2"), 3.5),
    ],
)
def test_second_passes_and_recompute_are_the_hardwares(overrides, forwards):
    found = cost(1, *overrides)
    assert found.hardware_flops / found.model_flops == pytest.approx(forwards / 3, rel=0.02)


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
