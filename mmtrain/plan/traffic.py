"""What a rank sends in a step, and to whom."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

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
class Traffic:
    """What one rank sends along an axis in a step."""

    axis: str
    size: int
    ranks: tuple[int, ...]
    """Those that rank 0 talks to, itself among them."""
    what: str
    sent: int
    """Bytes, by rings; the loss's features and scalars are not counted."""


def rank_traffic(
    workload: Workload,
    layout: PlannedLayout,
    all_stages: Sequence[nn.Module],
    runs: Sequence[StageRun],
    passes: int,
) -> tuple[Traffic, ...]:
    """What rank 0 sends in a step, by axis.

    Args:
        workload: what trains.
        layout: seen from pipeline coordinate 0.
        all_stages: of the pipeline.
        runs: of all stages, in order.
        passes: 2 where the features are computed without gradients first.
    """
    pp, tp, shard = layout.size("pp"), layout.size("tp"), layout.dp_shard
    replicate, microbatches = layout.config.dp_replicate, workload.train.microbatches
    stages = [all_stages[index] for index in held_stages(layout)]
    item = ITEM_BYTES.get(workload.train.precision, 4)
    forwards = microbatches * passes
    stride = {"tp": 1, "dp_shard": tp, "dp_replicate": tp * shard, "pp": tp * shard * replicate}
    found: list[Traffic] = []

    def add(axis: str, size: int, what: str, sent: int) -> None:
        ranks = tuple(stride[axis] * index for index in range(size))
        found.append(Traffic(axis=axis, size=size, ranks=ranks, what=what, sent=sent))

    if tp > 1:
        sent = sum(
            (forwards * one.forward + microbatches * one.backward) * _ring(tp, one.size)
            for index in held_stages(layout)
            for one in runs[index].streams
        )
        add("tp", tp, "tokens around each attention and feed-forward", sent)
    whole, grads = (
        sizes_of(named_parameters(stages), layout),
        sizes_of(named_parameters(stages, trains=True), layout),
    )
    if shard > 1:
        padded = shard * whole.shard * GATHERED_BYTES.get(workload.train.precision, 4)
        reduced = shard * grads.shard * item
        gathers = forwards + microbatches if is_resharded(layout) else microbatches
        gathers = 1 if pp > 1 else gathers
        sent = gathers * _ring(shard, padded) + _ring(shard, reduced)
        add("dp_shard", shard, "weights, then gradients", sent)
    if replicate > 1:
        sent = 2 * _ring(replicate, grads.shard * item)
        what = "gradients of its shard" if layout.is_sharded else "gradients"
        if layout.config.dp_kind == "zero1":
            sent, what = sent + _ring(replicate, grads.shard * item), "gradients, updated weights"
        add("dp_replicate", replicate, what, sent)
    if pp > 1:
        # Forward in each pass, the gradient back once, over every boundary of rank 0.
        sent = sum(
            forwards * (runs[index].handed_on if index < len(runs) - 1 else 0)
            + microbatches * runs[index].received
            for index in held_stages(layout)
        )
        add("pp", pp, "tokens, their gradients back", sent)
    return tuple(found)


def _ring(size: int, whole: int) -> int:
    """What a rank sends when `size` ranks gather, or sum and scatter, a whole of so many bytes."""
    return whole * (size - 1) // size
