"""Pipeline parallelism: stage i holds slice i of every tower.

One chain of stages carries both towers side by side, so that a single schedule of
torch.distributed.pipelining drives CLIP. GPipe: arXiv:1811.06965; 1F1B: arXiv:1806.03377;
interleaved: arXiv:2104.04473; zero bubble: arXiv:2401.10241.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

from mmtrain.errors import UsageError
from mmtrain.models import ClipStage, TextTower, VisionTower
from mmtrain.parallel.mesh import Layout


def stage_indices(layout: Layout) -> list[int]:
    """The stages this rank holds: one, or two where the schedule interleaves (in rounds, or as a V
    that turns round on the last rank)."""
    rank, size = layout.rank("pp"), layout.size("pp")
    if not _interleaves(layout):
        return [rank]
    if layout.config.schedule == "ZBVZeroBubble":
        return [rank, 2 * size - 1 - rank]
    return [rank, rank + size]


def _interleaves(layout: Layout) -> bool:
    return issubclass(get_schedule_class(layout.config.schedule), PipelineScheduleMulti)


def num_stages(layout: Layout) -> int:
    """Stages of the whole pipeline."""
    return layout.size("pp") * (2 if _interleaves(layout) else 1)


def check_stages(layout: Layout, num_layers: dict[str, int]) -> None:
    """Refuse more stages than layers.

    Args:
        layout: the mesh.
        num_layers: of each tower, by the tower's name.

    Raises:
        UsageError: naming the tower and what works.
    """
    total = num_stages(layout)
    for name, layers in num_layers.items():
        if total > layers:
            each = (
                f" with two stages a rank ({layout.config.schedule})"
                if _interleaves(layout)
                else ""
            )
            raise UsageError(
                f"parallel.pp = {layout.size('pp')}{each} cuts model.{name}.transformer.num_layers "
                f"= {layers} into {total} stages; use parallel.pp <= "
                f"{layers * layout.size('pp') // total}"
            )


def check_microbatches(layout: Layout, num_microbatches: int) -> None:
    """Refuse numbers of microbatches that the schedule cannot run.

    Raises:
        UsageError: naming the schedule and what works.
    """
    size, schedule = layout.size("pp"), layout.config.schedule
    rounds = max(1, num_microbatches // size)
    if schedule == "1F1B" and num_microbatches < size:
        raise UsageError(
            f"train.microbatches = {num_microbatches} must be at least parallel.pp = {size} under "
            f'parallel.schedule = "1F1B"; use train.microbatches = {size}, better {4 * size} (the '
            "pipeline idles (pp - 1) / microbatches of the time)"
        )
    if schedule in ("Interleaved1F1B", "InterleavedZeroBubble") and num_microbatches % rounds:
        raise UsageError(
            f"train.microbatches = {num_microbatches} must be a multiple of parallel.pp = {size} "
            f'under parallel.schedule = "{schedule}"; use train.microbatches = {rounds * size}'
        )


def layer_range(num_layers: int, index: int, num_stages: int) -> range:
    """The layers of stage `index`: an even cut, earlier stages taking the smaller share."""
    return range(num_layers * index // num_stages, num_layers * (index + 1) // num_stages)


def slice_tower(tower: VisionTower | TextTower, index: int, num_stages: int) -> None:
    """Drop from a tower what other stages hold, in place; names of parameters do not change."""
    kept = layer_range(tower.transformer.config.num_layers, index, num_stages)
    for name in list(tower.transformer.blocks):
        if int(name) not in kept:
            del tower.transformer.blocks[name]
    if index > 0:
        tower.embed = None
    if index < num_stages - 1:
        tower.head = None


def slice_stages(whole: ClipStage, layout: Layout) -> list[ClipStage]:
    """The slices of a model that this rank holds.

    Raises:
        UsageError: there are more stages than layers.
    """
    towers = {"vision": whole.vision, "text": whole.text}
    layers = {name: tower.transformer.config.num_layers for name, tower in towers.items()}
    check_stages(layout, layers)
    return [slice_stage(whole, i, num_stages(layout)) for i in stage_indices(layout)]


def slice_stage(whole: ClipStage, index: int, num_stages: int) -> ClipStage:
    """Stage `index` of the pipeline. Its parts are shared with `whole`, nothing is copied."""
    stage = ClipStage(_shallow(whole.vision), _shallow(whole.text))
    for tower in (stage.vision, stage.text):
        slice_tower(tower, index, num_stages)
    return stage


def _shallow(tower: Any) -> Any:
    """A tower with child tables of its own over the same parts."""
    twin = copy.copy(tower)
    twin._modules = dict(tower._modules)
    twin.transformer = copy.copy(tower.transformer)
    twin.transformer._modules = dict(tower.transformer._modules)
    twin.transformer.blocks = nn.ModuleDict(dict(tower.transformer.blocks.items()))
    return twin


def surrogate(features_B2E: Tensor, gradient_B2E: Tensor) -> Tensor:
    """<z, dL/dz>: its gradient with respect to the weights is the loss's own."""
    return (features_B2E * gradient_B2E).sum()


class _DenseGradient(torch.autograd.Function):
    """The identity, with a contiguous gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


def make_edges_dense(stage: nn.Module) -> None:
    """Make contiguous what a stage hands on, in place: tokens forward and gradients backward.

    Point-to-point transfers refuse anything else, and a pooling that expands its gradient or a
    `cat` at a stage's edge gives something else.
    """
    forward: Any = stage.forward

    def run(*inputs: Tensor, **rows: Tensor) -> Tensor | tuple[Tensor, ...]:
        # The first stage's uint8 images have no gradient.
        dense = (_DenseGradient.apply(x) if x.is_floating_point() else x for x in inputs)
        out = forward(*dense, **rows)
        return tuple(x.contiguous() for x in out) if isinstance(out, tuple) else out.contiguous()

    stage.forward = run  # pyright: ignore[reportAttributeAccessIssue]


class _Stage(PipelineStage):
    """torch's stage, but the turn of a V, two neighbours on one rank, serves `eval` too: torch's
    hands a gradient over there that a pass without backward has not."""

    def get_local_bwd_output(self, mb_index: int) -> Any:
        return super().get_local_bwd_output(mb_index) if self.has_backward else ()

    def set_local_bwd_input(self, next_stage_bwd_outputs: Any, mb_index: int) -> None:
        if self.has_backward:
            super().set_local_bwd_input(next_stage_bwd_outputs, mb_index)


class PipelineSchedule:
    """A schedule of torch.distributed.pipelining behind the interface of the training step.

    `eval` is the first pass (no gradients), `step` the second one, with the gradient of the
    features as target. Scaling by microbatches is off: the surrogate is a sum.
    """

    def __init__(
        self, stages: Sequence[nn.Module], layout: Layout, *, num_microbatches: int
    ) -> None:
        self.layout = layout
        self.num_microbatches = num_microbatches
        self.single_pass = False
        group = layout.group("pp")
        check_microbatches(layout, num_microbatches)
        for stage in stages:
            make_edges_dense(stage)
        pipes = [
            _Stage(stage, index, num_stages(layout), layout.device, group=group)
            for stage, index in zip(stages, stage_indices(layout), strict=True)
        ]
        kind = get_schedule_class(layout.config.schedule)
        self.shapes: dict[str, torch.Size] = {}
        self.schedule: Any = kind(
            pipes if _interleaves(layout) else pipes[0],  # pyright: ignore[reportArgumentType]
            n_microbatches=num_microbatches,
            loss_fn=surrogate,
            scale_grads=False,
        )

    @torch.no_grad()
    def eval(self, images_BCHW: Tensor, rows: dict[str, Tensor]) -> Tensor | None:
        """Features [B, 2, E] on the last stage, None elsewhere.

        Raises:
            ValueError: the shapes are not those of the first step.
        """
        self._keep_shapes(rows)
        inputs = (images_BCHW,) if self.layout.is_first_stage else ()
        # A schedule with a loss_fn indexes its targets in eval too; they are not used.
        target = torch.zeros(self.num_microbatches, 1) if self.layout.is_last_stage else None
        out = self.schedule.eval(*inputs, target=target, **rows)
        return out if self.layout.is_last_stage else None

    def step(
        self, images_BCHW: Tensor, rows: dict[str, Tensor], gradient_B2E: Tensor | None
    ) -> Tensor | None:
        """Accumulate the weights' gradients, given that of the features (on the last stage), which
        come back detached."""
        inputs = (images_BCHW,) if self.layout.is_first_stage else ()
        out = self.schedule.step(*inputs, target=gradient_B2E, **rows)
        return out.detach() if self.layout.is_last_stage else None

    def _keep_shapes(self, rows: dict[str, Tensor]) -> None:
        """torch's stages size their transfers at the first step; another size would hang there."""
        shapes = {name: value.shape for name, value in rows.items()}
        self.shapes = self.shapes or shapes
        for name, shape in shapes.items():
            if shape != self.shapes[name]:
                raise ValueError(
                    f"{name} is {list(shape)} and was {list(self.shapes[name])} in the pipeline's "
                    "first step, which fixes all shapes; pad every batch to the same size"
                )
