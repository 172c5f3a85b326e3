"""A training step is a schedule: one interface whatever the layout.

With one stage it is gradient accumulation; with many it is a pipeline (parallel/pipeline.py).
Either way a step may consist of two passes: `eval` gives the features of the whole batch without
gradients, the loss gives their gradient, `step` carries it into the weights. So the loss always
sees every negative, exactly. Gao et al. 2021 (GradCache), arXiv:2101.06983, section 3.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from mmtrain.errors import UsageError
from mmtrain.parallel import Layout, PipelineSchedule, replicate


class Schedule(Protocol):
    """What an objective drives. `rows` are per-row tensors that every stage may read."""

    num_microbatches: int
    single_pass: bool
    """Whether `forward` serves: one stage, one microbatch."""

    def eval(self, images_BCHW: Tensor, rows: dict[str, Tensor]) -> Tensor | None:
        """Features [B, 2, E] without gradients, on the last stage."""
        ...

    def step(
        self, images_BCHW: Tensor, rows: dict[str, Tensor], gradient_B2E: Tensor | None
    ) -> Tensor | None:
        """Accumulate the weights' gradients, given that of the features. Returns the features,
        detached, on the last stage: a loss that is a sum over rows, whose gradient is known
        beforehand, needs no other pass."""
        ...


class LocalSchedule:
    """One stage that holds the whole model: gradient accumulation over microbatches.

    Over several ranks gradients are reduced once, with the last microbatch.
    """

    def __init__(self, stage: nn.Module, *, num_microbatches: int) -> None:
        self.stage = stage
        self.num_microbatches = num_microbatches
        self.single_pass = num_microbatches == 1

    def _chunks(
        self, images_BCHW: Tensor, rows: dict[str, Tensor]
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        images = images_BCHW.chunk(self.num_microbatches)
        split = {name: value.chunk(self.num_microbatches) for name, value in rows.items()}
        return [
            (image, {name: parts[i] for name, parts in split.items()})
            for i, image in enumerate(images)
        ]

    def forward(self, images_BCHW: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Features [B, 2, E] with their graph, in one pass."""
        return self.stage(images_BCHW, **rows)

    @torch.no_grad()
    def eval(self, images_BCHW: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Features [B, 2, E] without gradients."""
        return torch.cat([self.stage(x, **part) for x, part in self._chunks(images_BCHW, rows)])

    def step(
        self, images_BCHW: Tensor, rows: dict[str, Tensor], gradient_B2E: Tensor | None
    ) -> Tensor:
        """Backward of every microbatch with its share of the features' gradient."""
        assert gradient_B2E is not None
        chunks = self._chunks(images_BCHW, rows)
        gradients = gradient_B2E.chunk(self.num_microbatches)
        done: list[Tensor] = []
        for i, ((images, part), gradient) in enumerate(zip(chunks, gradients, strict=True)):
            with self._reducing(i == len(chunks) - 1):
                features = self.stage(images, **part)
                if features.requires_grad:  # not where both towers are locked
                    torch.autograd.backward(features, gradient)
            done.append(features.detach())
        return torch.cat(done)

    def _reducing(self, reduces: bool) -> AbstractContextManager[None]:
        """In the context a backward reduces gradients over the ranks, or only adds them up."""
        if isinstance(self.stage, FSDPModule):
            self.stage.set_requires_gradient_sync(reduces)
        if isinstance(self.stage, DistributedDataParallel) and not reduces:
            return self.stage.no_sync()
        return nullcontext()


def build_schedule(
    stages: Sequence[nn.Module], layout: Layout, *, num_microbatches: int, batch_size: int
) -> "LocalSchedule | PipelineSchedule":
    """The schedule of this rank's stages.

    Args:
        stages: from `parallelize`.
        layout: the mesh.
        num_microbatches: equal parts of each data-parallel rank's rows.
        batch_size: rows of a *global* batch.

    Raises:
        UsageError: the rows cannot be cut so, or the pipeline's schedule wants other numbers.
    """
    num_rows = batch_size // layout.size("dp")
    if num_rows % num_microbatches:
        works = [n for n in range(1, num_rows + 1) if num_rows % n == 0]
        nearest = sorted(sorted(works, key=lambda n: abs(n - num_microbatches))[:3])
        raise UsageError(
            f"train.microbatches = {num_microbatches} must divide the {num_rows} rows that each "
            f"data-parallel rank has of train.batch_size = {batch_size}; use for example "
            f"{', '.join(map(str, nearest))}"
        )
    if layout.size("pp") > 1:
        return PipelineSchedule(stages, layout, num_microbatches=num_microbatches)
    stage = replicate(stages[0], layout) if layout.has_replicas else stages[0]
    return LocalSchedule(stage, num_microbatches=num_microbatches)
