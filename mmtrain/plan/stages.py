"""The stages that a recipe's layout makes, built and run for a microbatch without memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from mmtrain.models import Clip
from mmtrain.models.vqa import Vqa
from mmtrain.nn import Transformer
from mmtrain.nn import attention as attention_module
from mmtrain.nn.products import fast_products
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.pipeline import (
    make_edges_dense,
    num_stages,
    splits_backward,
    weights_meet,
)
from mmtrain.parallel.precision import Precision, apply_precision
from mmtrain.parallel.recompute import apply_recompute
from mmtrain.parallel.slices import check_slices
from mmtrain.parallel.vocabulary import has_vocabulary
from mmtrain.plan.kept import StageMemory, stage_memory
from mmtrain.plan.shares import take_share
from mmtrain.plan.workload import Workload

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What tensor-parallel ranks exchange at one place of a stage."""

    forward: int
    """Times in a forward that they gather it, or sum and scatter it; a whole sum is both."""
    backward: int
    """The same in a backward."""
    size: int
    """Bytes of it, tokens padded to a multiple of the ranks where these share them."""


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One stage, run for one microbatch on one rank."""

    memory: StageMemory
    received: int
    """Bytes that come from the stage before."""
    handed_on: int
    """Bytes that go to the next one."""
    streams: tuple[Stream, ...]
    text: StageMemory | None = None
    """Of a microbatch's texts alone, where all of them come first; `memory` is then the images'."""


def cut_stages(model: Clip | Vqa, layout: Layout) -> list[nn.Module]:
    """All stages of the layout's pipeline, or the one of none.

    Raises:
        UsageError: there are more stages than layers.
    """
    whole = model.stage()
    if layout.size("pp") == 1:
        return [whole]
    check_slices(whole, layout)
    total = num_stages(layout)
    return [whole.slice(index, total) for index in range(total)]


def run_stages(
    workload: Workload, layout: Layout, *, rows: int, by_parts: bool = False
) -> list[StageRun]:
    """Run a microbatch of `rows` images through all stages, texts at full length.

    Args:
        workload: what trains.
        layout: the mesh.
        rows: of a microbatch.
        by_parts: the texts apart from the images, see StageRun.text.
    """
    with attention_of(workload.train.device), FakeTensorMode():
        model = workload.build_model()
        stages = cut_stages(model, layout)
        workload.prepare(model, stages, layout)
        size = workload.clip.vision.image_size
        num = rows * workload.images_per_row
        inputs: tuple[Tensor, ...] = (torch.zeros(num, 3, size, size, dtype=torch.uint8),)
        small = workload.rows(rows)
        runs: list[StageRun] = []
        for stage in stages:
            run, inputs = _run_stage(workload, layout, stage, inputs, small, by_parts=by_parts)
            runs.append(run)
    return runs


@contextmanager
def attention_of(device: str) -> Iterator[None]:
    """Attention's form on that device: fused on a GPU, whatever this machine's CPU would take."""
    table = dict(attention_module.PLAIN_UP_TO)
    if device != "cpu":
        attention_module.PLAIN_UP_TO.clear()
    try:
        with fast_products(torch.device("cpu" if device == "cpu" else "cuda")):
            yield
    finally:
        attention_module.PLAIN_UP_TO.update(table)


def _run_stage(
    workload: Workload,
    layout: Layout,
    stage: nn.Module,
    inputs: tuple[Tensor, ...],
    small: dict[str, Tensor],
    *,
    by_parts: bool,
) -> tuple[StageRun, tuple[Tensor, ...]]:
    """Lay a stage out as parallelize does, and run it -> what the next stage is given."""
    tp, sequence = layout.size("tp"), layout.config.sequence
    streams = _watch(stage, layout)
    _apply_precision(stage, workload.train.precision)
    if tp > 1:
        take_share(stage, tp, sequence=sequence)
    apply_recompute(stage, layout.config.recompute, early_stop=tp == 1)
    if layout.size("pp") > 1:
        make_edges_dense(stage)
    text, weights = None, list(stage.parameters())
    if by_parts:
        run = partial(stage, *inputs, **small, only="text")
        text, (known_BE,) = stage_memory(run, weights=weights, inputs=inputs)
        small = small | {"text_BE": known_BE}
    memory, out = stage_memory(
        partial(stage, *inputs, **small),
        weights=weights,
        inputs=inputs,
        split=layout.size("pp") > 1 and splits_backward(layout) and not weights_meet(stage),
    )
    run = StageRun(
        memory=memory,
        received=sum(x.nbytes for x in inputs if x.is_floating_point()),
        handed_on=sum(x.nbytes for x in out),
        streams=tuple(streams.values()),
        text=text,
    )
    return run, tuple(x.requires_grad_() for x in out)


_ALIKE: dict[Precision, Precision] = {"float8": "bf16", "tf32": "fp32"}
"""Formats of GPUs alone, and what takes as much memory on any machine."""
_STORED = {"fp64": torch.float64, "bf16-pure": torch.bfloat16, "bf16-fsdp": torch.bfloat16}
"""FSDP's bf16 is computed with as if nothing else were stored."""


def _apply_precision(stage: nn.Module, precision: Precision) -> None:
    """As parallelize does; but torch converts no fake weights in place, and float8's products keep
    what bf16's do but for the weights' copies."""
    if precision not in _STORED:
        apply_precision(stage, _ALIKE.get(precision, precision), _CPU)
        return
    dtype = _STORED[precision]
    for module in stage.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(weight.detach().to(dtype), weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(dtype) if buffer.is_floating_point() else buffer)


def _watch(stage: nn.Module, layout: Layout) -> dict[tuple[nn.Module, str], Stream]:
    """What the ranks exchange around blocks and vocabularies, filled in when the stage runs."""
    found: dict[tuple[nn.Module, str], Stream] = {}
    parts = layout.size("tp") if layout.config.sequence else 1
    again = _again(layout)

    def stack(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        x_BTD, context_BSD = args[0], kwargs.get("context_BSD")
        padded = x_BTD.size(1) + -x_BTD.size(1) % parts
        sums = 2 if context_BSD is None else 3
        # With sequence parallelism the stack's own ends gather once forward, once backward.
        forward = 2 * sums * len(module.blocks) + (parts > 1)
        backward = forward + sums * sum(again(int(layer)) for layer in module.blocks)
        found[module, "x"] = Stream(
            forward=forward, backward=backward, size=x_BTD.nbytes // x_BTD.size(1) * padded
        )
        if context_BSD is not None:
            found[module, "context"] = Stream(
                forward=0, backward=2 * len(module.blocks), size=context_BSD.nbytes
            )

    def look_up(module: nn.Module, _: Any, out: Tensor) -> None:
        found[module, "x"] = Stream(forward=2, backward=0, size=out.nbytes)

    def logits(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[module, "x"] = Stream(forward=0, backward=2, size=args[0].nbytes)

    for module in stage.modules():
        if isinstance(module, Transformer):
            module.register_forward_pre_hook(stack, with_kwargs=True)
        if not has_vocabulary(module):
            continue
        if module.embed is not None:
            module.embed.token.register_forward_hook(look_up)
        if module.head is not None:
            for part in (module.head.projection, module.head.tied):
                if part is not None:
                    part.register_forward_pre_hook(logits)
    return found


def _again(layout: Layout) -> Callable[[int], int]:
    """How often a backward repeats one exchange of a layer: its gather and its sum where all is
    recomputed, its gather where sums are kept."""
    recompute = layout.config.recompute
    times = {"none": 0, "selective": int(layout.config.sequence), "full": 2}[recompute.kind]
    return lambda layer: times if layer % recompute.every == 0 else 0
