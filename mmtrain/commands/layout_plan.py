"""What a recipe's layout means for its ranks, before any of them is there.

The model is built without memory, cut by the pipeline's own code and counted by tensor
parallelism's own plan, so nothing is told that would not run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import nn

from mmtrain.commands.plan_activations import step_memory
from mmtrain.commands.plan_stages import StageRun, build_model, cut_stages, run_stages
from mmtrain.errors import UsageError
from mmtrain.models import Decoder
from mmtrain.nn import Transformer, TransformerConfig
from mmtrain.parallel import Layout
from mmtrain.parallel.mesh import Axis
from mmtrain.parallel.pipeline import check_microbatches, stage_indices
from mmtrain.parallel.precision import check_precision
from mmtrain.parallel.tensor import RECIPE_KEYS, check_tensor_parallel
from mmtrain.parallel.vocabulary import check_vocabulary
from mmtrain.recipe import TrainRecipe
from mmtrain.report.pipeline_order import Action, idle_fraction, pipeline_order
from mmtrain.report.shares import cut_shape

_ITEM_BYTES: dict[str, int] = {"bf16-pure": 2, "fp64": 8}
_GATHERED_BYTES = _ITEM_BYTES | {"bf16-fsdp": 2}


@dataclass(frozen=True, kw_only=True)
class PlannedLayout(Layout):
    """A layout without ranks: sizes by axis, and the pipeline coordinate that is looked at."""

    world_size: int
    blocks: dict[str, TransformerConfig]
    """Of each stack of them, by its path in the model's stage."""
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
    activations: int
    """What a step makes and frees, gradients apart, at its fullest moment."""
    step: int
    """The same, gradients among it: not all of them are there at that moment."""
    offloaded: bool = False
    """Whether weights, optimizer and the gradients of its shard are in main memory."""

    @property
    def total(self) -> int:
        """The most at a time on the device."""
        stored = 0 if self.offloaded else self.weights + self.optimizer
        return stored + self.gathered + self.step


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
    replicas, shard = recipe.parallel.dp_sizes(world_size, ranks=f"--world-size {world_size}")
    with torch.device("meta"):
        model = build_model(recipe)
    whole = model.stage()
    blocks = {n: m.config for n, m in whole.named_modules() if isinstance(m, Transformer)}
    layout = PlannedLayout(
        device=torch.device("meta"),
        config=replace(recipe.parallel, dp_replicate=replicas, dp_shard=shard),
        world_size=world_size,
        blocks=blocks,
    )
    check_precision(layout, recipe.train.precision)
    pp, dp = layout.size("pp"), layout.size("dp")
    microbatches = recipe.train.microbatches
    if recipe.train.batch_size % (dp * microbatches):
        raise UsageError(
            f"train.batch_size = {recipe.train.batch_size} must be a multiple of the {dp} "
            f"data-parallel ranks x train.microbatches = {microbatches}; use "
            f"{-(-recipe.train.batch_size // (dp * microbatches)) * dp * microbatches}"
        )
    rows = recipe.train.batch_size // (dp * microbatches)
    _check_tensor_parallel(whole, layout)
    if pp > 1:
        check_microbatches(layout, microbatches)
        order = pipeline_order(layout.config.schedule, size=pp, num_microbatches=microbatches)
    else:
        order = pipeline_order("1F1B", size=1, num_microbatches=microbatches)
    stages = cut_stages(model, layout)
    runs = run_stages(recipe, layout, rows=rows)
    passes = 1 if recipe.vqa is not None or (pp == 1 and microbatches == 1) else 2
    memory = tuple(
        _memory(recipe, replace(layout, pp_rank=rank), stages, runs, order[rank], rows, passes)
        for rank in range(pp)
    )
    return Plan(
        layout=layout,
        rows=rows,
        num_microbatches=microbatches,
        passes=passes,
        num_parameters=sum(p.numel() for p in model.parameters()),
        idle=idle_fraction(order) if pp > 1 else 0.0,
        memory=memory,
        traffic=_traffic(recipe, layout, stages, runs, passes),
    )


def _check_tensor_parallel(whole: nn.Module, layout: PlannedLayout) -> None:
    tp = layout.size("tp")
    for name, config in layout.blocks.items():
        check_tensor_parallel(RECIPE_KEYS[name], config, tp)
    for module in whole.modules():
        if isinstance(module, Decoder) and tp > 1:
            check_vocabulary(module, tp)


def _indices(layout: PlannedLayout) -> list[int]:
    return stage_indices(layout) if layout.size("pp") > 1 else [0]


_VOCABULARIES = ("decoder.embed.token.weight", "decoder.head.projection.weight")


def _tp_shape(name: str, parameter: nn.Parameter, layout: PlannedLayout) -> tuple[int, ...]:
    """The shape that a tensor-parallel rank holds."""
    shape, tp = tuple(parameter.shape), layout.size("tp")
    if name.endswith(_VOCABULARIES):
        return (-(-shape[0] // tp), *shape[1:])
    stack, _, within = name.partition(".blocks.")
    path, _, leaf = within.partition(".")[2].rpartition(".")
    return cut_shape(path, leaf, shape, layout.blocks[stack], tp) if path else shape


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


def _named(stages: Sequence[nn.Module], *, trains: bool = False) -> list[tuple[str, nn.Parameter]]:
    named = [pair for stage in stages for pair in stage.named_parameters()]
    return [pair for pair in named if pair[1].requires_grad or not trains]


def _is_resharded(layout: PlannedLayout) -> bool:
    return layout.config.reshard_after_forward and layout.size("pp") == 1


def _memory(
    recipe: TrainRecipe,
    layout: PlannedLayout,
    all_stages: Sequence[nn.Module],
    runs: Sequence[StageRun],
    order: Sequence[Action],
    rows: int,
    passes: int,
) -> RankMemory:
    item = _ITEM_BYTES.get(recipe.train.precision, 4)
    stages = [all_stages[index] for index in _indices(layout)]
    everything, trained = _named(stages), _named(stages, trains=True)
    sizes, grads = _sizes(everything, layout), _sizes(trained, layout)
    root = _sizes([pair for pair in everything if ".blocks." not in pair[0]], layout).whole
    block = max(
        _sizes([pair for pair in everything if pair[0].startswith(start)], layout).whole
        for start in _starts(stages)
    )
    parallel = layout.is_sharded or layout.has_replicas
    accumulates = recipe.train.microbatches > 1
    gathered = 0
    if layout.is_sharded:
        # The next block is gathered while one computes.
        copies = root + 2 * block if _is_resharded(layout) else sizes.whole
        gathered = copies * _GATHERED_BYTES.get(recipe.train.precision, 4)
    # FSDP's bf16 gradients are added up in fp32.
    wider = item // _GATHERED_BYTES.get(recipe.train.precision, 4)

    def held(whole: int) -> int:
        """FSDP sums and scatters a block's gradients when it is done; those of several microbatches
        with the last one. DDP's buckets are there all the time."""
        if layout.has_replicas:
            return item * grads.whole + (whole if accumulates else 0)
        if parallel and not accumulates:
            kept = 0 if layout.config.cpu_offload else wider * whole // layout.dp_shard
            return min(whole, item * block) + kept
        return wider * whole

    def most(gradients: Callable[[int], int]) -> int:
        return step_memory(
            recipe, layout, runs, order, rows=rows, passes=passes, gradients=gradients
        )

    return RankMemory(
        pp_rank=layout.pp_rank,
        stages=tuple(_indices(layout)),
        num_parameters=sizes.shard,
        weights=item * sizes.shard,
        gradients=item * (grads.shard + (grads.whole if parallel and accumulates else 0)),
        optimizer=_optimizer(recipe, layout, trained, item),
        gathered=gathered,
        activations=most(lambda _: 0),
        step=most(held),
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


def _ring(size: int, whole: int) -> int:
    """What a rank sends when `size` ranks gather, or sum and scatter, a whole of so many bytes."""
    return whole * (size - 1) // size


def _traffic(
    recipe: TrainRecipe,
    layout: PlannedLayout,
    all_stages: Sequence[nn.Module],
    runs: Sequence[StageRun],
    passes: int,
) -> tuple[Traffic, ...]:
    pp, tp, shard = layout.size("pp"), layout.size("tp"), layout.dp_shard
    replicate, microbatches = layout.config.dp_replicate, recipe.train.microbatches
    stages = [all_stages[index] for index in _indices(layout)]
    item = _ITEM_BYTES.get(recipe.train.precision, 4)
    forwards = microbatches * passes
    stride = {"tp": 1, "dp_shard": tp, "dp_replicate": tp * shard, "pp": tp * shard * replicate}
    found: list[Traffic] = []

    def add(axis: str, size: int, what: str, sent: int) -> None:
        ranks = tuple(stride[axis] * index for index in range(size))
        found.append(Traffic(axis=axis, size=size, ranks=ranks, what=what, sent=sent))

    if tp > 1:
        sent = sum(
            (forwards * one.forward + microbatches * one.backward) * _ring(tp, one.size)
            for index in _indices(layout)
            for one in runs[index].streams
        )
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
        # Forward in each pass, the gradient back once, over every boundary of rank 0.
        sent = sum(
            forwards * (runs[index].handed_on if index < len(runs) - 1 else 0)
            + microbatches * runs[index].received
            for index in _indices(layout)
        )
        add("pp", pp, "tokens, their gradients back", sent)
    return tuple(found)
