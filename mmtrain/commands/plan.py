"""`mmtrain plan`: a recipe's layout over so many ranks, before one of them is rented."""

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmtrain.build.workload import (
    flops_by_phase,
    phase_samples,
    phase_workloads,
    read_workload,
)
from mmtrain.errors import UsageError
from mmtrain.parallel.accelerators import Accelerator
from mmtrain.plan.cost import Assumptions, Cost, cost_of, find_gpu, row_work
from mmtrain.plan.layout import Plan, plan_layout
from mmtrain.plan.memory import RankMemory
from mmtrain.plan.workload import Workload
from mmtrain.recipe import load_recipe
from mmtrain.settings.counted import counted

_GIB = 1 << 30


def plan_command(
    *,
    recipe: Path,
    overrides: list[str],
    world_size: int,
    images: int | None = None,
    gpu: str | None = None,
    price: float | None = None,
    samples: int | None = None,
    efficiency: float | None = None,
) -> None:
    """Print the layout, who talks to whom, and the memory of a rank of each pipeline coordinate;
    with a GPU's name, time and price on paper.

    Raises:
        UsageError: the layout does not fit, an adapter has dropout or is cut, or the questions of a
            recipe with [vqa.classify], which fix its answers, are not there; images have no room,
            or are no dialogues'; the GPU is unknown, or an option of its cost is given without it.
    """
    renting = _renting(gpu, price=price, samples=samples, efficiency=efficiency)
    workload = read_workload(load_recipe(recipe, overrides))
    if images is not None:
        workload = workload.with_images(images)
    if not workload.train.phase:
        plan = plan_layout(workload, world_size=world_size)
        _print_plan(workload, plan)
        if renting is not None:
            _print_cost(workload, plan, *renting)
        return
    if samples is not None:
        raise UsageError(
            f"--samples {samples} contradicts [[train.phase]], whose phases say how many; leave it "
            "out"
        )
    _print_phases(workload, world_size=world_size, renting=renting)


def _print_phases(
    workload: Workload,
    *,
    world_size: int,
    renting: tuple[Accelerator, Assumptions, int | None] | None,
) -> None:
    """The plan of each phase, and what each is of the whole."""
    flops, costs = [], []
    both = zip(phase_workloads(workload), phase_samples(workload), strict=True)
    for number, (part, samples) in enumerate(both):
        plan = plan_layout(part, world_size=world_size)
        print(f"phase {number}: {_told(part)}")
        _print_plan(part, plan)
        flops.append(row_work(part, plan).model)
        if renting is not None:
            costs.append(_print_cost(part, plan, renting[0], renting[1], samples))
    for line in flops_by_phase(workload, flops):
        print(line)
    hours = [cost.hours for cost in costs if cost.hours is not None]
    if hours and len(hours) == len(flops):
        prices = [cost.price for cost in costs if cost.price is not None]
        price = f", {_amount(sum(prices))} in all" if prices else ""
        print(
            f"all phases: {_amount(sum(hours))} hours, {_amount(sum(hours) * world_size)} GPU hours"
            f"{price}"
        )


def _told(workload: Workload) -> str:
    vision = workload.clip.vision
    return (
        f"images of {vision.image_size} px, {vision.num_kept} of {vision.num_patches} patches, "
        f"texts of up to {workload.clip.text.max_ids} tokens"
    )


def _print_plan(workload: Workload, plan: Plan) -> None:
    """Layout, neighbours and memory."""
    train, parallel = workload.train, workload.parallel
    sizes = plan.layout.config
    print(
        f"{counted(plan.layout.world_size, 'rank')} = pp {sizes.pp} x dp_replicate "
        f"{sizes.dp_replicate} x dp_shard {sizes.dp_shard} x tp {sizes.tp}"
        f"{'' if sizes.dp_kind == 'fsdp' else f', {sizes.dp_kind}'}"
        f"; {plan.num_parameters / 1e6:,.1f} M parameters"
    )
    print(
        f"batch {train.batch_size:,} = {counted(plan.layout.size('dp'), 'data-parallel rank')} x "
        f"{counted(plan.num_microbatches, 'microbatch', 'es')} x {counted(plan.rows, 'row')}; "
        f"{counted(plan.passes, 'pass', 'es')} over the batch; {train.precision}"
    )
    console = Console(width=None if sys.stdout.isatty() else 140)
    if plan.traffic:
        console.print(_traffic_table(plan), highlight=False)
    if parallel.pp > 1:
        print(
            f"pipeline: {parallel.schedule}, idle {plan.idle:.1%} of the time (stages that cost "
            "the same, a backward twice a forward)"
        )
    console.print(_memory_table(plan), highlight=False)
    print(
        f"GiB on the fullest rank of each pipeline coordinate; {workload.row_told}; gathered: "
        "FSDP's whole copies at a time; total: at the fullest moment of a step, before which not "
        "all gradients need be there; without the framework's own, train.compile, the input "
        "pipeline and what the allocator loses"
    )
    if parallel.cpu_offload:
        print(
            "weights, gradients and optimizer are in main memory (parallel.cpu_offload) and not in "
            "the total, which is the GPU's: gathered, activations, the gradients that a block has "
            "just made, and whole ones where there are microbatches"
        )


def _renting(
    gpu: str | None, *, price: float | None, samples: int | None, efficiency: float | None
) -> tuple[Accelerator, Assumptions, int | None] | None:
    """What is rented, what is assumed of it, and for how many samples; None: nothing."""
    given = {"price": price, "samples": samples, "efficiency": efficiency}
    if gpu is None:
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"--{name} {value:g} has no effect without --gpu; name one")
        return None
    if efficiency is not None and efficiency > 1:
        raise UsageError(f"--efficiency {efficiency:g} is a share of the peak; give at most 1")
    assumed = Assumptions(price=price)
    if efficiency is not None:
        assumed = replace(assumed, efficiency=efficiency)
    return find_gpu(gpu), assumed, samples


def _print_cost(
    workload: Workload, plan: Plan, gpu: Accelerator, assumed: Assumptions, samples: int | None
) -> Cost:
    """Time and money on paper, and what they rest on."""
    batch, steps, ranks = workload.train.batch_size, workload.train.steps, plan.layout.world_size
    if samples is None and steps is not None:
        samples = steps * batch
    cost = cost_of(workload, plan, gpu, assumed, num_samples=samples)
    print(
        f"on paper, {ranks:,} x {gpu.name}: {cost.samples_per_second:,.0f} samples/s "
        f"({cost.samples_per_second / ranks:,.1f} a GPU), MFU {cost.mfu:.1%}; a step of "
        f"{1e3 * cost.step:,.1f} ms: computing {1e3 * cost.computing:,.1f}, traffic beside it "
        f"{1e3 * cost.sending:,.1f}, traffic waited for {1e3 * cost.waiting:,.1f}; "
        f"{cost.model_flops / 1e12:,.2f} TFLOPs a step, {cost.hardware_flops / 1e12:,.2f} computed"
    )
    if cost.memory_gb > gpu.memory_gb:
        print(
            f"it does not fit: {cost.memory_gb:,.1f} GB of {gpu.memory_gb:,.0f} GB; raise "
            "train.microbatches or parallel.dp_shard"
        )
    if samples is None or cost.hours is None:
        remedy = "give samples" if workload.train.phase else "--samples N gives hours and price"
        print(f"epochs are of data that are not read here: {remedy}")
    else:
        price = "" if cost.price is None else f", {_amount(cost.price)} at {assumed.price:g} each"
        print(
            f"{samples:,} samples: {_amount(cost.hours)} hours, {_amount(cost.hours * ranks)} GPU "
            f"hours{price}"
        )
    print("assumed, not measured:")
    for line in assumed.lines(gpu, workload.train.precision):
        print(f"- {line}")
    if workload.teachers:
        print("- a teacher's products at the peak of its own number format")
    if workload.optim.kind == "muon":
        print("- Muon's products at the peak of bf16")
    return cost


def _amount(value: float) -> str:
    """Of time or money, three digits at least: what is small is not nothing."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _traffic_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("axis", "ranks", "rank 0 talks to", "about", "GiB sent a step"):
        right = heading in ("ranks", "GiB sent a step")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for one in plan.traffic:
        names = [str(rank) for rank in one.ranks]
        shown = names if len(names) <= 4 else [*names[:3], "...", names[-1]]
        sent = f"{one.sent / _GIB:,.3f}"
        table.add_row(one.axis, str(one.size), ", ".join(shown), one.what, sent)
    return table


def _memory_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    teachers = any(one.teachers for one in plan.memory)
    headings = ["stage", "M parameters", "weights", *["teachers"] * teachers, "gradients"]
    for heading in (*headings, "optimizer", "gathered", "activations", "total"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in plan.memory:
        table.add_row(*_memory_cells(one, teachers=teachers))
    return table


def _memory_cells(one: RankMemory, *, teachers: bool) -> tuple[str, ...]:
    parts = [one.weights, one.gradients, one.optimizer, one.gathered, one.activations, one.total]
    if teachers:
        parts.insert(1, one.teachers)
    return (
        " + ".join(map(str, one.stages)),
        f"{one.num_parameters / 1e6:,.2f}",
        *(f"{part / _GIB:,.2f}" for part in parts),
    )
