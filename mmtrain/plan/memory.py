"""What a rank holds, and the most of it at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from mmtrain.models.parameters import hidden_matrix_names
from mmtrain.nn import Transformer
from mmtrain.plan.activations import step_memory, workload_teachers
from mmtrain.plan.order import Action
from mmtrain.plan.ranks import (
    GATHERED_BYTES,
    ITEM_BYTES,
    PlannedLayout,
    held_stages,
    is_resharded,
    named_parameters,
    sizes_of,
)
from mmtrain.plan.stages import StageRun
from mmtrain.plan.workload import Workload


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on one rank, the fullest of its pipeline coordinate."""

    pp_rank: int
    stages: tuple[int, ...]
    """Stages of the pipeline that it holds."""
    num_parameters: int
    """That it stores."""
    num_trained: int
    """Of them, those that train."""
    weights: int
    gradients: int
    """With microbatches FSDP has a whole set more until the last one is done."""
    optimizer: int
    """Moments, and the weights' average where there is one."""
    gathered: int
    """FSDP's whole copies of what is computed at a time."""
    activations: int
    """What a step makes and frees, gradients apart, at its fullest moment."""
    step: int
    """The same, gradients among it: not all of them are there at that moment."""
    teachers: int = 0
    """Weights of models that are learnt from, whole on every rank that has images."""
    offloaded: bool = False
    """Whether weights, optimizer and the gradients of its shard are in main memory."""

    @property
    def total(self) -> int:
        """The most at a time on the device."""
        stored = 0 if self.offloaded else self.weights + self.optimizer
        return stored + self.teachers + self.gathered + self.step


def rank_memory(
    workload: Workload,
    layout: PlannedLayout,
    all_stages: Sequence[nn.Module],
    runs: Sequence[StageRun],
    order: Sequence[Action],
    rows: int,
    passes: int,
) -> RankMemory:
    """What the fullest rank of a pipeline coordinate holds.

    Args:
        workload: what trains.
        layout: whose pipeline coordinate it is.
        all_stages: of the pipeline.
        runs: of all stages, in order.
        order: what the rank does in a step.
        rows: of a microbatch.
        passes: 2 where the features are computed without gradients first.
    """
    item = ITEM_BYTES.get(workload.train.precision, 4)
    stages = [all_stages[index] for index in held_stages(layout)]
    everything, trained = named_parameters(stages), named_parameters(stages, trains=True)
    hidden = {name for stage in stages for name in hidden_matrix_names(stage)}
    sizes, grads = sizes_of(everything, layout), sizes_of(trained, layout)
    root = sizes_of([pair for pair in everything if ".blocks." not in pair[0]], layout).whole
    block = max(
        sizes_of([pair for pair in everything if pair[0].startswith(start)], layout).whole
        for start in _starts(stages)
    )
    accumulates = workload.train.microbatches > 1
    gathered = 0
    if layout.is_sharded:
        # The next block is gathered while one computes.
        copies = root + 2 * block if is_resharded(layout) else sizes.whole
        gathered = copies * GATHERED_BYTES.get(workload.train.precision, 4)
    # FSDP's bf16 gradients are added up in fp32.
    wider = item // GATHERED_BYTES.get(workload.train.precision, 4)

    def held(whole: int) -> int:
        """FSDP sums and scatters a block's gradients when it is done; those of several microbatches
        with the last one. DDP's become parts of the buckets that are sent."""
        if layout.is_sharded and not accumulates:
            kept = 0 if layout.config.cpu_offload else wider * whole // layout.dp_shard
            return min(whole, item * block) + kept
        return wider * whole

    def most(gradients: Callable[[int], int]) -> int:
        return step_memory(
            workload, layout, runs, order, rows=rows, passes=passes, gradients=gradients
        )

    return RankMemory(
        pp_rank=layout.pp_rank,
        stages=tuple(held_stages(layout)),
        num_parameters=sizes.shard,
        num_trained=grads.shard,
        weights=item * sizes.shard,
        gradients=item * (grads.shard + (grads.whole if layout.is_sharded and accumulates else 0)),
        optimizer=_optimizer(workload, layout, trained, hidden, item),
        gathered=gathered,
        activations=most(lambda _: 0),
        step=most(held),
        teachers=workload_teachers(workload, layout, rows=1).weights,
        offloaded=layout.config.cpu_offload,
    )


def _starts(stages: Sequence[nn.Module]) -> list[str]:
    """What the names of each block's parameters start with."""
    return [
        f"{path}.blocks.{name}."
        for stage in stages
        for path, module in stage.named_modules()
        if isinstance(module, Transformer)
        for name in module.blocks
    ]


def _optimizer(
    workload: Workload,
    layout: PlannedLayout,
    trained: list[tuple[str, nn.Parameter]],
    hidden: set[str],
    item: int,
) -> int:
    """Two moments of AdamW, one of Muon, shared out by ZeRO-1; an average is in fp32 at least."""
    muon = workload.optim.kind == "muon"
    one = [pair for pair in trained if muon and pair[0] in hidden]
    moments = 2 * sizes_of(trained, layout).shard - sizes_of(one, layout).shard
    if layout.config.dp_kind == "zero1":
        # By whole tensors, the largest first: even, unless one is larger than a share.
        largest = max((p.numel() for _, p in trained), default=0)
        moments = max(-(-moments // layout.size("dp")), 2 * largest)
    average = 0 if workload.optim.ema_decay is None else sizes_of(trained, layout).shard
    return item * moments + max(item, 4) * average
