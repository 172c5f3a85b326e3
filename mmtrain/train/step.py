"""A training step is a schedule: one interface whatever the layout.

With one stage it is gradient accumulation; with many it is a pipeline (parallel/pipeline.py).
Either way a step may consist of two passes: `eval` gives the outputs of the whole batch without
gradients, the objective their gradient, `step` carries it into the weights. Where the gradient is
known beforehand, `step` is all; where the loss is a sum over the images, `step_in_parts`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mmtrain.errors import UsageError
from mmtrain.nn.regions import region
from mmtrain.parallel.ddp import Replica, replicate
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.pipeline import PipelineSchedule


class Schedule(Protocol):
    """What an objective drives. `rows` are per-row tensors that every stage may read."""

    num_microbatches: int
    single_pass: bool
    """Whether `forward` serves: one stage, one microbatch."""
    frozen_outputs: tuple[str, ...]
    """Outputs of towers of which nothing trains; a second pass may be given them."""

    def eval(self, images_BCHW: Tensor, rows: dict[str, Tensor]) -> Tensor | None:
        """Outputs [R, C] without gradients, on the last stage."""
        ...

    def step(
        self, images_BCHW: Tensor, rows: dict[str, Tensor], gradient_RC: Tensor | None
    ) -> Tensor | None:
        """Accumulate the weights' gradients, given that of the outputs. Returns the outputs,
        detached, on the last stage: a loss that is a sum over rows, whose gradient is known
        beforehand, needs no other pass."""
        ...


class Parts(Protocol):
    """A loss that has all texts and takes the images in parts."""

    def add(self, image_XE: Tensor, rows: slice) -> Tensor | None:
        """Take the images of `rows` -> the gradient [X, E] of their features, if it is wanted."""
        ...

    def finish(self) -> tuple[Tensor, Tensor | None]:
        """-> the loss and the gradient [B, E] of the texts, if it is wanted; parameters have theirs
        in `.grad`."""
        ...


class LocalSchedule:
    """One stage that holds the whole model: gradient accumulation over microbatches.

    Over several ranks gradients are reduced once, with the last microbatch.
    """

    def __init__(
        self, stage: nn.Module, *, num_microbatches: int, whole: nn.Module | None = None
    ) -> None:
        self.stage = stage
        self.whole = stage if whole is None else whole
        """The stage without what averages its gradients."""
        self._standard = num_microbatches
        self.num_microbatches: int = num_microbatches
        self.frozen_outputs: tuple[str, ...] = getattr(self.whole, "frozen_outputs", tuple)()

    @property
    def single_pass(self) -> bool:
        """Whether `forward` serves."""
        return self.num_microbatches == 1

    def cut(self, num_microbatches: int | None) -> None:
        """Compute in so many parts from here on; None: in those that it was made with."""
        self.num_microbatches = num_microbatches or self._standard

    def _chunks(
        self, images_BCHW: Tensor, rows: dict[str, Tensor]
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        # Of which a row may have several; then it is a `Ragged`, cut with the rows.
        images = images_BCHW.chunk(self.num_microbatches)
        split = {name: value.chunk(self.num_microbatches) for name, value in rows.items()}
        return [
            (image, {name: parts[i] for name, parts in split.items()})
            for i, image in enumerate(images)
        ]

    def forward(self, images_BCHW: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Outputs [R, C] with their graph, in one pass."""
        return self.stage(images_BCHW, **rows)

    @torch.no_grad()
    def eval(self, images_BCHW: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Outputs [R, C] without gradients."""
        out = [self.stage(x, **part) for x, part in self._chunks(images_BCHW, rows)]
        if isinstance(self.stage, FSDPModule):  # no backward frees what a forward has gathered
            self.stage.reshard()
        return torch.cat(out)

    def step(
        self, images_BCHW: Tensor, rows: dict[str, Tensor], gradient_RC: Tensor | None
    ) -> Tensor:
        """Backward of every microbatch with its share of the outputs' gradient."""
        assert gradient_RC is not None
        chunks = self._chunks(images_BCHW, rows)
        gradients = gradient_RC.chunk(self.num_microbatches)
        done: list[Tensor] = []
        for i, ((images, part), gradient) in enumerate(zip(chunks, gradients, strict=True)):
            self._reduce(i == len(chunks) - 1)
            outputs = self.stage(images, **part)
            if outputs.requires_grad:  # not where both towers are locked
                with region("backward"):
                    torch.autograd.backward(outputs, gradient)
            done.append(outputs.detach())
        return torch.cat(done)

    def step_in_parts(
        self, images_BCHW: Tensor, rows: dict[str, Tensor], begin: Callable[[Tensor], Parts]
    ) -> tuple[Tensor, Tensor]:
        """One pass: all texts with their graph, then the images by microbatch, each backward at
        once, the texts' with the last.

        Returns:
            The loss, and the outputs [R, C], detached.
        """
        chunks = self._chunks(images_BCHW, rows)
        self._reduce(False)
        texts = [self.whole(x, **part, only="text") for x, part in chunks]
        sizes = [text.size(0) for text in texts]
        text_BE = torch.cat(texts)
        parts, done, start = begin(text_BE.detach()), [], 0
        loss = text_BE.new_zeros(())
        for i, ((images, part), size) in enumerate(zip(chunks, sizes, strict=True)):
            last, rows_X = i == len(chunks) - 1, slice(start, start + size)
            start += size
            self._reduce(last)
            # FSDP wants the texts' graph in the one forward that reduces.
            known = text_BE[rows_X] if last else text_BE[rows_X].detach()
            outputs = self.stage(images, **part, text_BE=known)
            image_XE = outputs[:, : -known.size(1)]
            backward = {image_XE: parts.add(image_XE.detach(), rows_X)}
            if last:
                loss, backward[text_BE] = parts.finish()
            _backward(backward)
            done.append(outputs.detach())
        return loss, torch.cat(done)

    def _reduce(self, reduces: bool) -> None:
        """From here on a backward reduces gradients over the ranks, or only adds them up."""
        if isinstance(self.stage, FSDPModule):
            self.stage.set_requires_gradient_sync(reduces)
        if isinstance(self.stage, Replica):
            self.stage.averages = reduces


def _backward(gradients: dict[Tensor, Tensor | None]) -> None:
    """Of all tensors that have a graph at once, with the gradients that they have."""
    trained = {x: g for x, g in gradients.items() if x.requires_grad and g is not None}
    if trained:
        with region("backward"):
            torch.autograd.backward([*trained], [*trained.values()])


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
    check_microbatches(
        ("train.microbatches", num_microbatches), ("train.batch_size", batch_size), layout=layout
    )
    if layout.size("pp") > 1:
        return PipelineSchedule(stages, layout, num_microbatches=num_microbatches)
    stage = replicate(stages[0], layout) if layout.has_replicas else stages[0]
    return LocalSchedule(stage, num_microbatches=num_microbatches, whole=stages[0])


def check_microbatches(
    microbatches: tuple[str, int], batch_size: tuple[str, int], *, layout: Layout
) -> None:
    """Refuse parts that the rows of a rank cannot be cut into.

    Args:
        microbatches: the setting that says how many, and its value.
        batch_size: the setting that says the rows of a *global* batch, and its value.
        layout: the mesh.

    Raises:
        UsageError: naming both.
    """
    (key, num_microbatches), (size_key, size) = microbatches, batch_size
    num_rows = size // layout.size("dp")
    if num_rows % num_microbatches:
        works = [n for n in range(1, num_rows + 1) if num_rows % n == 0]
        nearest = sorted(sorted(works, key=lambda n: abs(n - num_microbatches))[:3])
        raise UsageError(
            f"{key} = {num_microbatches} must divide the {num_rows} rows that each "
            f"data-parallel rank has of {size_key} = {size}; use for example "
            f"{', '.join(map(str, nearest))}"
        )
