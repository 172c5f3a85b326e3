"""`mmtrain plan`: a recipe's layout over so many ranks, before one of them is rented."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmtrain.build.workload import read_workload
from mmtrain.plan.layout import Plan, plan_layout
from mmtrain.plan.memory import RankMemory
from mmtrain.recipe import load_recipe

_GIB = 1 << 30


def plan_command(*, recipe: Path, overrides: list[str], world_size: int) -> None:
    """Print the layout, who talks to whom, and the memory of a rank of each pipeline coordinate.

    Raises:
        UsageError: the layout does not fit, an adapter trains, or the questions of a recipe with
            [vqa.classify], which fix its answers, are not there.
    """
    workload = read_workload(load_recipe(recipe, overrides))
    plan = plan_layout(workload, world_size=world_size)
    train, parallel = workload.train, workload.parallel
    sizes = plan.layout.config
    print(
        f"{world_size} ranks = pp {sizes.pp} x dp_replicate {sizes.dp_replicate} x dp_shard "
        f"{sizes.dp_shard} x tp {sizes.tp}"
        f"{'' if sizes.dp_kind == 'fsdp' else f', {sizes.dp_kind}'}"
        f"; {plan.num_parameters / 1e6:,.1f} M parameters"
    )
    print(
        f"batch {train.batch_size:,} = {plan.layout.size('dp')} data-parallel ranks x "
        f"{plan.num_microbatches} microbatches x {plan.rows} rows; {plan.passes} "
        f"pass{'es' if plan.passes > 1 else ''} over the batch; {train.precision}"
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
        "GiB on the fullest rank of each pipeline coordinate; texts at full length; gathered: "
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
