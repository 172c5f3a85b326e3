"""Pipeline parallelism: one chain of stages, driven by torch.distributed.pipelining.

Models cut themselves (models/model.py). GPipe: arXiv:1811.06965; 1F1B: arXiv:1806.03377;
interleaved: arXiv:2104.04473; zero bubble: arXiv:2401.10241.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

from mmtrain.errors import UsageError
from mmtrain.nn.regions import region
from mmtrain.nn.seams import Forward, wrap_forward
from mmtrain.parallel.mesh import Layout


def stage_indices(layout: Layout) -> list[int]:
    """The stages this rank holds: one, or two where the schedule interleaves (in rounds, or as a V
    that turns round on the last rank)."""
    rank, size = layout.rank("pp"), layout.size("pp")
    if not interleaves(layout):
        return [rank]
    if layout.config.schedule == "ZBVZeroBubble":
        return [rank, 2 * size - 1 - rank]
    return [rank, rank + size]


def interleaves(layout: Layout) -> bool:
    """Whether each rank holds two stages."""
    return issubclass(get_schedule_class(layout.config.schedule), PipelineScheduleMulti)


def splits_backward(layout: Layout) -> bool:
    """Whether weights' gradients are computed later than those of inputs."""
    return layout.config.schedule in ("InterleavedZeroBubble", "ZBVZeroBubble")


def num_stages(layout: Layout) -> int:
    """Stages of the whole pipeline."""
    return layout.size("pp") * (2 if interleaves(layout) else 1)


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


def surrogate(outputs_RC: Tensor, gradient_RC: Tensor) -> Tensor:
    """<z, dL/dz>: its gradient with respect to the weights is the loss's own."""
    return (outputs_RC * gradient_RC).sum()


class _DenseGradient(torch.autograd.Function):
    """The identity, with a contiguous gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


def _dense(x: Tensor) -> Tensor:
    """The same values, contiguous, and not a view: zero-bubble schedules detach them in place."""
    x = x.contiguous()
    return x.clone() if x._is_view() else x


def make_edges_dense(stage: nn.Module) -> None:
    """Make contiguous what a stage hands on, in place: tokens forward and gradients backward.

    Point-to-point transfers refuse anything else, and a pooling that expands its gradient or a
    `cat` at a stage's edge gives something else.
    """

    def between_dense(forward: Forward) -> Forward:
        def run(*inputs: Tensor, **rows: Tensor) -> Tensor | tuple[Tensor, ...]:
            # The first stage's uint8 images have no gradient.
            dense = (_DenseGradient.apply(x) if x.is_floating_point() else x for x in inputs)
            out = forward(*dense, **rows)
            return tuple(map(_dense, out)) if isinstance(out, tuple) else _dense(out)

        return run

    wrap_forward(stage, "edges", between_dense)


class _Stage(PipelineStage):
    """torch's stage, but the turn of a V, two neighbours on one rank, serves `eval` too: torch's
    hands a gradient over there that a pass without backward has not."""

    def get_local_bwd_output(self, mb_index: int) -> Any:
        return super().get_local_bwd_output(mb_index) if self.has_backward else ()

    def set_local_bwd_input(self, next_stage_bwd_outputs: Any, mb_index: int) -> None:
        if self.has_backward:
            super().set_local_bwd_input(next_stage_bwd_outputs, mb_index)

    def _get_init_p2p_neighbors_ops(self) -> list[dist.P2POp]:
        # torch 2.11 also greets the neighbour on the same rank, to which gloo has no connection.
        ops = super()._get_init_p2p_neighbors_ops()
        return [op for op in ops if op.group_peer != self.group_rank]


@runtime_checkable
class _WeightsMeet(Protocol):
    weights_meet: ClassVar[bool]


def weights_meet(stage: nn.Module) -> bool:
    """Whether weights of a stage lead to each other before they meet what the stage was given: a
    dictionary to its keys' matrix, a connector's queries, an embedding to its tied logits. Modules
    of which this is true say so.

    Zero-bubble schedules compute the gradients of inputs first and of weights later. torch sorts
    such weights into groups that overlap, and counts them twice or walks a graph that is gone.
    """
    return any(isinstance(part, _WeightsMeet) and part.weights_meet for part in stage.modules())


def _nothing_left() -> Callable[[], None]:
    """Of a stage whose gradients are all computed with those of its inputs."""
    return lambda: None


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What trains of a stage."""

    trains: bool
    frozen_outputs: frozenset[str]
    """Outputs of towers of which nothing trains there."""


class PipelineSchedule:
    """A schedule of torch.distributed.pipelining behind the interface of the training step.

    `eval` is the first pass (no gradients), `step` the second one, with the gradient of the
    features as target. Scaling by microbatches is off: the surrogate is a sum. Each pass has a
    schedule and stages of its own over the same modules: torch's set up their transfers with a
    trial microbatch, again and again where one schedule takes turns at both. So what travels in the
    second may be less: tokens of frozen towers, whose outputs are known, do not.
    """

    def __init__(
        self, stages: Sequence[nn.Module], layout: Layout, *, num_microbatches: int
    ) -> None:
        self.layout = layout
        self.num_microbatches = num_microbatches
        self.single_pass = False
        self._parts = self._gather_parts(stages)
        frozen = frozenset.intersection(*(part.frozen_outputs for part in self._parts))
        self.frozen_outputs: tuple[str, ...] = tuple(sorted(frozen))
        self.shapes: dict[str, torch.Size] = {}
        check_microbatches(layout, num_microbatches)
        for stage in stages:
            make_edges_dense(stage)
        self._without_backward = self._schedule(stages, None)
        self._with_backward = self._schedule(stages, surrogate)

    def _gather_parts(self, stages: Sequence[nn.Module]) -> list[_Part]:
        """What all stages say of what trains, in order. Collective."""
        mine = {
            index: _Part(
                trains=any(p.requires_grad for p in stage.parameters()),
                frozen_outputs=frozenset(getattr(stage, "frozen_outputs", tuple)()),
            )
            for index, stage in zip(stage_indices(self.layout), stages, strict=True)
        }
        found: list[dict[int, _Part]] = [{} for _ in range(self.layout.size("pp"))]
        dist.all_gather_object(found, mine, group=self.layout.group("pp"))
        parts = {index: part for held in found for index, part in held.items()}
        return [parts[index] for index in sorted(parts)]

    def _schedule(
        self, stages: Sequence[nn.Module], criterion: Callable[[Tensor, Tensor], Tensor] | None
    ) -> Any:
        """torch's schedule; without a criterion it has no backward."""
        layout = self.layout
        pipes = [
            _Stage(
                stage,
                index,
                num_stages(layout),
                layout.device,
                group=layout.group("pp"),
                dw_builder=None if self._splits(stage, index) else _nothing_left,
            )
            for stage, index in zip(stages, stage_indices(layout), strict=True)
        ]
        return get_schedule_class(layout.config.schedule)(
            pipes if interleaves(layout) else pipes[0],  # pyright: ignore[reportArgumentType]
            n_microbatches=self.num_microbatches,
            loss_fn=criterion,
            scale_grads=False,
        )

    def _splits(self, stage: nn.Module, index: int) -> bool:
        """Whether a zero-bubble schedule may compute the gradients of this stage in two halves.

        torch leaves the weights without any where no input wants one, but on the first stage.
        """
        fed_by_trained = any(part.trains for part in self._parts[:index])
        return not weights_meet(stage) and (index == 0 or fed_by_trained)

    @torch.no_grad()
    def eval(self, images_BCHW: Tensor, rows: dict[str, Tensor]) -> Tensor | None:
        """Outputs [R, C] on the last stage, None elsewhere.

        Raises:
            ValueError: the shapes are not those of the first step.
        """
        self._keep_shapes(rows)
        inputs = (images_BCHW,) if self.layout.is_first_stage else ()
        out = self._without_backward.eval(*inputs, **rows)
        return out if self.layout.is_last_stage else None

    def step(
        self, images_BCHW: Tensor, rows: dict[str, Tensor], gradient_RC: Tensor | None
    ) -> Tensor | None:
        """Accumulate the weights' gradients, given that of the outputs (on the last stage), which
        come back detached. Without `eval` before it this is the whole step: the last stage's
        criterion has made a sum over rows of them, whose gradient is known beforehand."""
        inputs = (images_BCHW,) if self.layout.is_first_stage else ()
        with region("backward"):  # what is not a stage's forward
            out = self._with_backward.step(*inputs, target=gradient_RC, **rows)
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
