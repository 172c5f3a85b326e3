"""Pipeline parallelism: stage i holds slice i of every tower.

One chain of stages carries both towers side by side, so that a single schedule of
torch.distributed.pipelining drives CLIP. GPipe: arXiv:1811.06965; 1F1B: arXiv:1806.03377; interleaved:
arXiv:2104.04473; zero bubble: arXiv:2401.10241.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

from mmtrain.models import ClipStage, TextTower, VisionTower
from mmtrain.parallel.mesh import Layout


def stage_indices(layout: Layout) -> list[int]:
    """The stages this rank holds: one, or two where the schedule interleaves."""
    rank, size = layout.rank("pp"), layout.size("pp")
    if not issubclass(get_schedule_class(layout.config.schedule), PipelineScheduleMulti):
        return [rank]
    return [rank, rank + size]


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


class PipelineSchedule:
    """A schedule of torch.distributed.pipelining behind the interface of the training step.

    `eval` is the first pass (no gradients), `step` the second one, with the gradient of the features
    as target. Scaling by microbatches is off: the surrogate is a sum.
    """

    def __init__(self, stages: list[ClipStage], layout: Layout, *, num_microbatches: int) -> None:
        self.layout = layout
        self.num_microbatches = num_microbatches
        self.single_pass = False
        group = layout.group("pp")
        indices = stage_indices(layout)
        num_stages = layout.size("pp") * len(indices)
        pipes = [
            PipelineStage(stage, index, num_stages, layout.device, group=group)
            for stage, index in zip(stages, indices, strict=True)
        ]
        kind = get_schedule_class(layout.config.schedule)
        multi = issubclass(kind, PipelineScheduleMulti)
        self.schedule: Any = kind(
            pipes if multi else pipes[0],  # pyright: ignore[reportArgumentType]
            n_microbatches=num_microbatches,
            loss_fn=surrogate,
            scale_grads=False,
        )

    @torch.no_grad()
    def eval(self, images_BCHW: Tensor, rows: dict[str, Tensor]) -> Tensor | None:
        """Features [B, 2, E] on the last stage, None elsewhere."""
        inputs = (images_BCHW,) if self.layout.is_first_stage else ()
        # A schedule with a loss_fn indexes its targets in eval too; they are not used.
        target = torch.zeros(self.num_microbatches, 1) if self.layout.is_last_stage else None
        out = self.schedule.eval(*inputs, target=target, **rows)
        return out if self.layout.is_last_stage else None

    def step(
        self, images_BCHW: Tensor, rows: dict[str, Tensor], gradient_B2E: Tensor | None
    ) -> None:
        """Accumulate the weights' gradients, given that of the features (on the last stage)."""
        inputs = (images_BCHW,) if self.layout.is_first_stage else ()
        self.schedule.step(*inputs, target=gradient_B2E, return_outputs=False, **rows)
