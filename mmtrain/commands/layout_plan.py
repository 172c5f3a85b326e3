"""What a recipe's layout means for its ranks, before any of them is there.

The model is built without memory, cut by the pipeline's own code and counted by tensor
parallelism's own plan, so nothing is told that would not run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from mmtrain.errors import UsageError
from mmtrain.models import Clip, ClipStage
from mmtrain.models.clip import lock_tower
from mmtrain.nn import TransformerConfig
from mmtrain.parallel import Layout, ParallelConfig
from mmtrain.parallel.mesh import Axis
from mmtrain.parallel.pipeline import check_microbatches, num_stages, stage_indices
from mmtrain.parallel.slices import slice_stages
from mmtrain.parallel.tensor import block_plan, check_tensor_parallel
from mmtrain.recipe import TrainRecipe
from mmtrain.report.kept import KeptByTower, kept_by_towers
from mmtrain.report.pipeline_order import Order, idle_fraction, peak_held, pipeline_order

_ITEM_BYTES: dict[str, int] = {"bf16-pure": 2, "fp64": 8}
_GATHERED_BYTES = _ITEM_BYTES | {"bf16-fsdp": 2}


@dataclass(frozen=True, kw_only=True)
class PlannedLayout(Layout):
    """A layout without ranks: sizes by axis, and the pipeline coordinate that is looked at."""

    world_size: int
    blocks: dict[str, TransformerConfig]
    """Each tower's."""
    pp_rank: int = 0

    def size(self, name: Axis) -> int:
        """Ranks along an axis."""
        config = self.config
        fixed = {"pp": config.pp, "tp": config.tp}
        return fixed.get(name, self.world_size // (config.pp * config.tp))

    def rank(self, name: Axis) -> int:
        """The pipeline coordinate that is looked at; 0 along other axes, where all are alike."""
        return self.pp_rank if name == "pp" else 0

    @property
    def dp_shard(self) -> int:
        """Ranks that share one copy of the weights."""
        return self.size("dp") // self.config.dp_replicate


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on one rank, the fullest of its pipeline coordinate."""

    pp_rank: int
    stages: tuple[int, ...]
    """Stages of the pipeline that it holds."""
    num_parameters: int
    """That it stores."""
    weights: int
    gradients: int
    """With microbatches there is a whole set more: under FSDP until the last one is done; under DDP
    beside the buckets that are sent."""
    optimizer: int
    """Moments, and the weights' average where there is one."""
    gathered: int
    """FSDP's whole copies of what is computed at a time."""
    kept: int
    """What autograd keeps for the backward at most."""
    buffers: int
    """Of what travels between pipeline stages."""

    @property
    def activations(self) -> int:
        """What waits for the backward at most, and what it travels in."""
        return self.kept + self.buffers

    @property
    def total(self) -> int:
        """All of it at once, the most that can be."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations


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


def plan_layout(recipe: TrainRecipe, *, world_size: int) -> Plan:
    """The plan of a resolved recipe.

    Raises:
        UsageError: the layout fits neither the ranks, the model nor the batch.
    """
    towers = {"vision": recipe.model.vision, "text": recipe.model.text}
    blocks = {name: tower.transformer for name, tower in towers.items()}
    layout = _layout(recipe.parallel, world_size, blocks)
    pp, dp, tp = layout.size("pp"), layout.size("dp"), layout.size("tp")
    microbatches = recipe.train.microbatches
    if recipe.train.batch_size % (dp * microbatches):
        raise UsageError(
            f"train.batch_size = {recipe.train.batch_size} must be a multiple of the {dp} "
            f"data-parallel ranks x train.microbatches = {microbatches}; use "
            f"{-(-recipe.train.batch_size // (dp * microbatches)) * dp * microbatches}"
        )
    rows = recipe.train.batch_size // (dp * microbatches)
    for name, config in blocks.items():
        check_tensor_parallel(f"model.{name}.transformer", config, tp)
    with torch.device("meta"):
        model = Clip(recipe.model.clip)
    for tower, unlocked in ((model.vision, recipe.lock.vision), (model.text, recipe.lock.text)):
        if unlocked is not None:
            lock_tower(tower, unlocked_layers=unlocked)
    kept = kept_by_towers(
        recipe.model.clip,
        rows=rows,
        tp=tp,
        sequence=recipe.parallel.sequence,
        precision=recipe.train.precision,
        fused_attention=recipe.train.device != "cpu",
    )
    if pp > 1:
        check_microbatches(layout, microbatches)
        order = pipeline_order(layout.config.schedule, size=pp, num_microbatches=microbatches)
    else:
        order = pipeline_order("1F1B", size=1, num_microbatches=microbatches)
    ranks = [replace(layout, pp_rank=rank) for rank in range(pp)]
    held = [_slices(model, rank) for rank in ranks]
    return Plan(
        layout=layout,
        rows=rows,
        num_microbatches=microbatches,
        passes=1 if pp == 1 and microbatches == 1 else 2,
        num_parameters=sum(p.numel() for p in model.parameters()),
        idle=idle_fraction(order) if pp > 1 else 0.0,
        memory=tuple(
            _memory(recipe, rank, slices, kept, order)
            for rank, slices in zip(ranks, held, strict=True)
        ),
        traffic=_traffic(recipe, layout, held[0], kept),
    )


def _layout(
    config: ParallelConfig, world_size: int, blocks: dict[str, TransformerConfig]
) -> PlannedLayout:
    replicate, shard = config.dp_sizes(world_size, ranks=f"--world-size {world_size}")
    config = replace(config, dp_replicate=replicate, dp_shard=shard)
    return PlannedLayout(
        device=torch.device("meta"), config=config, world_size=world_size, blocks=blocks
    )


def _slices(model: Clip, layout: PlannedLayout) -> list[ClipStage]:
    whole = model.stage()
    stages = slice_stages(whole, layout) if layout.size("pp") > 1 else [whole]
    return [stage for stage in stages if isinstance(stage, ClipStage)]


def _tp_shape(name: str, parameter: nn.Parameter, layout: PlannedLayout) -> tuple[int, ...]:
    """The shape that a tensor-parallel rank holds."""
    shape, tp = list(parameter.shape), layout.size("tp")
    outside, _, within = name.partition(".blocks.")
    path, _, leaf = within.partition(".")[2].rpartition(".")
    style = None
    if path:
        blocks = layout.blocks[outside.partition(".")[0]]
        style = block_plan(blocks, tp=tp, sequence=True).get(path)
    if isinstance(style, ColwiseParallel):
        shape[0] //= tp
    elif isinstance(style, RowwiseParallel) and leaf == "weight":
        shape[1] //= tp
    return tuple(shape)


@dataclass(frozen=True)
class _Sizes:
    """Elements of parameters on a rank: its shard, and the whole that FSDP gathers."""

    shard: int
    whole: int


def _sizes(named: Iterable[tuple[str, nn.Parameter]], layout: PlannedLayout) -> _Sizes:
    """Of the fullest rank: FSDP cuts the first dim, every share as large as the largest."""
    shard = whole = 0
    for name, parameter in named:
        shape = _tp_shape(name, parameter, layout)
        rest = prod(shape[1:])
        rows = -(-shape[0] // layout.dp_shard)
        shard += rows * rest
        whole += shape[0] * rest
    return _Sizes(shard, whole)


def _named(stages: Sequence[ClipStage], *, trains: bool = False) -> list[tuple[str, nn.Parameter]]:
    named = [pair for stage in stages for pair in stage.named_parameters()]
    return [pair for pair in named if pair[1].requires_grad or not trains]


def _is_resharded(layout: PlannedLayout) -> bool:
    return layout.config.reshard_after_forward and layout.size("pp") == 1


def _memory(
    recipe: TrainRecipe,
    layout: PlannedLayout,
    stages: Sequence[ClipStage],
    kept: dict[str, KeptByTower],
    order: Order,
) -> RankMemory:
    item = _ITEM_BYTES.get(recipe.train.precision, 4)
    everything, trained = _named(stages), _named(stages, trains=True)
    sizes, grads = _sizes(everything, layout), _sizes(trained, layout)
    root = _sizes([pair for pair in everything if ".blocks." not in pair[0]], layout).whole
    block = max(
        _sizes(part.named_parameters(prefix=f"{name}.blocks.0"), layout).whole
        for stage in stages
        for name, tower in (("vision", stage.vision), ("text", stage.text))
        for part in tower.transformer.blocks.values()
    )
    parallel = layout.is_sharded or layout.has_replicas
    accumulates = recipe.train.microbatches > 1
    gathered = 0
    if layout.is_sharded:
        # The next block is gathered while one computes.
        copies = root + 2 * block if _is_resharded(layout) else sizes.whole
        gathered = copies * _GATHERED_BYTES.get(recipe.train.precision, 4)
        gathered += 0 if accumulates else (root + block) * item
    held, buffers = _activations(layout, stages, kept, order, recipe.train.microbatches)
    return RankMemory(
        pp_rank=layout.pp_rank,
        stages=tuple(stage_indices(layout)) if layout.size("pp") > 1 else (0,),
        num_parameters=sizes.shard,
        weights=item * sizes.shard,
        gradients=item * (grads.shard + (grads.whole if parallel and accumulates else 0)),
        optimizer=_optimizer(recipe, layout, trained, item),
        gathered=gathered,
        kept=held,
        buffers=buffers,
    )


def _optimizer(
    recipe: TrainRecipe,
    layout: PlannedLayout,
    trained: list[tuple[str, nn.Parameter]],
    item: int,
) -> int:
    """Two moments of AdamW, one of Muon, shared out by ZeRO-1; an average is in fp32 at least."""
    muon = recipe.optim.kind == "muon"
    one = [pair for pair in trained if muon and ".blocks." in pair[0] and pair[1].ndim == 2]
    moments = 2 * _sizes(trained, layout).shard - _sizes(one, layout).shard
    if layout.config.dp_kind == "zero1":
        # By whole tensors, the largest first: even, unless one is larger than a share.
        largest = max((p.numel() for _, p in trained), default=0)
        moments = max(-(-moments // layout.size("dp")), 2 * largest)
    average = 0 if recipe.optim.ema_decay is None else _sizes(trained, layout).shard
    return item * moments + max(item, 4) * average


def _activations(
    layout: PlannedLayout,
    stages: Sequence[ClipStage],
    kept: dict[str, KeptByTower],
    order: Order,
    num_microbatches: int,
) -> tuple[int, int]:
    """What autograd keeps at most, and what lies in buffers between stages."""
    indices = stage_indices(layout) if layout.size("pp") > 1 else [0]
    last = num_stages(layout) - 1 if layout.size("pp") > 1 else 0
    stream = sum(tower.stream for tower in kept.values())
    waiting: dict[int, int] = {}
    buffers, outputs = 0, {}
    for index, stage in zip(indices, stages, strict=True):
        waiting[index] = 0
        # An output waits until its backward is done; what comes in, tokens and gradients alike,
        # has a buffer for every microbatch.
        outputs[index] = 0 if index == last else stream
        buffers += num_microbatches * stream * ((index > 0) + (index < last))
        for name, tower in (("vision", stage.vision), ("text", stage.text)):
            if any(parameter.requires_grad for parameter in tower.parameters()):
                waiting[index] += kept[name].block * len(tower.transformer.blocks)
                waiting[index] += 0 if tower.embed is None else kept[name].embed
                waiting[index] += 0 if tower.head is None else kept[name].head
    actions = order[layout.pp_rank]
    return peak_held(actions, waiting), buffers + peak_held(actions, outputs)


def _ring(size: int, whole: int) -> int:
    """What a rank sends when `size` ranks gather, or sum and scatter, a whole of so many bytes."""
    return whole * (size - 1) // size


def _traffic(
    recipe: TrainRecipe,
    layout: PlannedLayout,
    stages: Sequence[ClipStage],
    kept: dict[str, KeptByTower],
) -> tuple[Traffic, ...]:
    pp, tp, shard = layout.size("pp"), layout.size("tp"), layout.dp_shard
    replicate, microbatches = layout.config.dp_replicate, recipe.train.microbatches
    item = _ITEM_BYTES.get(recipe.train.precision, 4)
    two_passes = pp > 1 or microbatches > 1
    forwards = microbatches * (2 if two_passes else 1)
    stride = {"tp": 1, "dp_shard": tp, "dp_replicate": tp * shard, "pp": tp * shard * replicate}
    found: list[Traffic] = []

    def add(axis: str, size: int, what: str, sent: int) -> None:
        ranks = tuple(stride[axis] * index for index in range(size))
        found.append(Traffic(axis=axis, size=size, ranks=ranks, what=what, sent=sent))

    if tp > 1:
        sent = 0
        for name in ("vision", "text"):
            towers = [getattr(stage, name) for stage in stages]
            blocks = sum(len(tower.transformer.blocks) for tower in towers)
            sequence = layout.config.sequence
            stream = kept[name].stream_padded if sequence else kept[name].stream
            # Two sums forward and two backward; cut by tokens, each is a gather and a scatter. The
            # stack's own ends are one gather forward and one backward.
            ends = len(towers) if sequence else 0
            sent += (4 * blocks + ends) * forwards * _ring(tp, stream)
            sent += (4 * blocks + ends) * microbatches * _ring(tp, stream)
        add("tp", tp, "tokens around each attention and feed-forward", sent)
    whole, grads = _sizes(_named(stages), layout), _sizes(_named(stages, trains=True), layout)
    if shard > 1:
        padded = shard * whole.shard * _GATHERED_BYTES.get(recipe.train.precision, 4)
        reduced = shard * grads.shard * item
        gathers = forwards + microbatches if _is_resharded(layout) else microbatches
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
        # Forward twice, the gradient back once, over every boundary that rank 0 sends at.
        stream = sum(tower.stream for tower in kept.values())
        last = num_stages(layout) - 1
        sent = 0
        for index in stage_indices(layout):
            sent += 2 * microbatches * stream if index < last else 0
            sent += microbatches * stream if index > 0 else 0
        add("pp", pp, "tokens of both towers, their gradients back", sent)
    return tuple(found)
