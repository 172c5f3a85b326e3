"""What a recipe's layout means for its ranks, before any of them is there.

The model is built without memory, cut by the pipeline's own code and counted by tensor
parallelism's own plan, so nothing is told that would not run.
"""

from dataclasses import dataclass, replace

import torch

from mmtrain.errors import UsageError
from mmtrain.parallel.pipeline import check_microbatches
from mmtrain.parallel.precision import check_precision, laid_out
from mmtrain.parallel.tensor_plans import check_tensor_parallel_stage
from mmtrain.plan.memory import RankMemory, rank_memory
from mmtrain.plan.order import idle_fraction, pipeline_order
from mmtrain.plan.ranks import PlannedLayout
from mmtrain.plan.stages import cut_stages, run_stages
from mmtrain.plan.traffic import Traffic, rank_traffic
from mmtrain.plan.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A layout in numbers."""

    layout: PlannedLayout
    rows: int
    """Of a microbatch on each rank."""
    num_microbatches: int
    passes: int
    """2 where the features are computed without gradients first."""
    num_parameters: int
    """Of the whole model."""
    idle: float
    """Share of the time that a pipeline leaves idle."""
    memory: tuple[RankMemory, ...]
    """By pipeline coordinate."""
    traffic: tuple[Traffic, ...]


def plan_layout(workload: Workload, *, world_size: int) -> Plan:
    """The plan of a workload.

    Raises:
        UsageError: the layout fits neither the ranks, the model nor the batch.
    """
    replicas, shard = workload.parallel.dp_sizes(world_size, ranks=f"--world-size {world_size}")
    with torch.device("meta"):
        model = workload.build_model()
    whole = model.stage()
    blocks = {path: stack.blocks.config for path, stack in whole.stacks().items()}
    layout = PlannedLayout(
        device=torch.device("meta"),
        config=replace(workload.parallel, dp_replicate=replicas, dp_shard=shard),
        world_size=world_size,
        blocks=blocks,
    )
    check_precision(layout, workload.train.precision)
    precision = laid_out(layout, workload.train.precision)
    workload = replace(workload, train=replace(workload.train, precision=precision))
    pp, dp = layout.size("pp"), layout.size("dp")
    microbatches = workload.train.microbatches
    if workload.train.batch_size % (dp * microbatches):
        raise UsageError(
            f"train.batch_size = {workload.train.batch_size} must be a multiple of the {dp} "
            f"data-parallel ranks x train.microbatches = {microbatches}; use "
            f"{-(-workload.train.batch_size // (dp * microbatches)) * dp * microbatches}"
        )
    rows = workload.train.batch_size // (dp * microbatches)
    check_tensor_parallel_stage(whole, layout.size("tp"))
    if pp > 1:
        check_microbatches(layout, microbatches)
        order = pipeline_order(layout.config.schedule, size=pp, num_microbatches=microbatches)
    else:
        order = pipeline_order("1F1B", size=1, num_microbatches=microbatches)
    stages = cut_stages(model, layout)
    accumulates = pp == 1 and microbatches > 1
    by_parts = accumulates and workload.sums_over_images
    runs = run_stages(workload, layout, rows=rows, by_parts=by_parts)
    passes = 2 if workload.comparisons and (pp > 1 or accumulates) and not by_parts else 1
    memory = tuple(
        rank_memory(
            workload, replace(layout, pp_rank=rank), stages, runs, order[rank], rows, passes
        )
        for rank in range(pp)
    )
    return Plan(
        layout=layout,
        rows=rows,
        num_microbatches=microbatches,
        passes=passes,
        num_parameters=sum(p.numel() for p in model.parameters()),
        idle=idle_fraction(order, passes=passes) if pp > 1 else 0.0,
        memory=memory,
        traffic=rank_traffic(workload, layout, stages, runs, passes),
    )
