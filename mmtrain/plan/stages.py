"""The stages that a recipe's layout makes, built and run for a microbatch without memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from mmtrain.errors import UsageError
from mmtrain.models import Clip, Decoder
from mmtrain.models.parameters import lock_tower
from mmtrain.models.vqa import Vqa, VqaStage
from mmtrain.nn import Transformer, TransformerConfig
from mmtrain.nn import attention as attention_module
from mmtrain.parallel import Layout
from mmtrain.parallel.pipeline import (
    make_edges_dense,
    num_stages,
    splits_backward,
    weights_meet,
)
from mmtrain.parallel.precision import Precision, apply_precision
from mmtrain.parallel.recompute import apply_recompute
from mmtrain.parallel.slices import check_slices, slice_stage
from mmtrain.plan.kept import StageMemory, stage_memory
from mmtrain.plan.shares import take_share
from mmtrain.recipe import TrainRecipe
from mmtrain.tasks.answering import answer_objective

_CPU = torch.device("cpu")
_RIGHT_ANSWERS = 10
"""Of a question at most, as VQAv2 has them."""


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


def build_model(recipe: TrainRecipe) -> Clip | Vqa:
    """The recipe's model on torch's present device, with what it locks.

    Raises:
        UsageError: what is locked is not there.
    """
    clip, section = recipe.model.clip, recipe.vqa
    model = Clip(clip) if section is None else Vqa(clip, section.model)
    for name in ("vision", "text"):
        tower, unlocked = getattr(model, name), getattr(recipe.lock, name)
        if unlocked is None:
            continue
        if tower is None:
            raise UsageError(f"lock.{name} = {unlocked} has no effect: generate has no such tower")
        lock_tower(tower, unlocked_layers=unlocked)
    return model


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
    return [slice_stage(whole, index, total) for index in range(total)]


def run_stages(recipe: TrainRecipe, layout: Layout, *, rows: int) -> list[StageRun]:
    """Run a microbatch of `rows` images through all stages, texts at full length."""
    with _attention_of(recipe.train.device), FakeTensorMode():
        model = build_model(recipe)
        stages = cut_stages(model, layout)
        if isinstance(model, Vqa):
            assert recipe.vqa is not None
            objective = answer_objective(model, recipe.vqa.loss, layout=layout, seed=0)
            for stage in stages:
                assert isinstance(stage, VqaStage)
                stage.set_criterion(objective.criterion)
                stage.question_length = recipe.model.text.context_length
        size = recipe.model.vision.image_size
        inputs: tuple[Tensor, ...] = (torch.zeros(rows, 3, size, size, dtype=torch.uint8),)
        small = _rows(recipe, rows)
        runs: list[StageRun] = []
        for stage in stages:
            run, inputs = _run_stage(recipe, layout, stage, inputs, small)
            runs.append(run)
    return runs


@contextmanager
def _attention_of(device: str) -> Iterator[None]:
    """Attention's form on that device: fused on a GPU, whatever this machine's CPU would take."""
    table = dict(attention_module.PLAIN_UP_TO)
    if device != "cpu":
        attention_module.PLAIN_UP_TO.clear()
    try:
        yield
    finally:
        attention_module.PLAIN_UP_TO.update(table)


def _rows(recipe: TrainRecipe, rows: int) -> dict[str, Tensor]:
    """What is small per row, as the objectives make it."""
    vision, text = recipe.model.vision, recipe.model.text
    found: dict[str, Tensor] = {}
    if vision.patch_dropout:
        found["kept_BP"] = torch.zeros(rows, vision.num_kept, dtype=torch.int64)
    if layers := _dropped_layers(vision.transformer):
        found["vision_keep_BL2"] = torch.ones(rows, layers, 2)
    if recipe.vqa is None:
        found["tokens_BT"] = torch.zeros(rows, text.context_length, dtype=torch.int64)
        found["length_B"] = torch.full((rows,), text.context_length)
        if layers := _dropped_layers(text.transformer):
            found["text_keep_BL2"] = torch.ones(rows, layers, 2)
        return found
    generate = recipe.vqa.generate
    length = text.context_length
    if generate is not None:
        assert generate.text_length is not None
        length = generate.text_length
    questions = rows * recipe.vqa.data.per_image
    if layers := _dropped_layers(text.transformer):
        found["text_keep_QL2"] = torch.ones(questions, layers, 2)
    return found | {
        "tokens_QT": torch.zeros(questions, length, dtype=torch.int64),
        "question_length_Q": torch.full((questions,), text.context_length),
        "length_Q": torch.full((questions,), length),
        "answer_id_QK": torch.zeros(questions, _RIGHT_ANSWERS, dtype=torch.int64),
        "answer_score_QK": torch.ones(questions, _RIGHT_ANSWERS),
        "valid_Q": torch.ones(questions, dtype=torch.bool),
    }


def _dropped_layers(blocks: TransformerConfig) -> int:
    return blocks.num_layers if blocks.stochastic_depth else 0


def _run_stage(
    recipe: TrainRecipe,
    layout: Layout,
    stage: nn.Module,
    inputs: tuple[Tensor, ...],
    small: dict[str, Tensor],
) -> tuple[StageRun, tuple[Tensor, ...]]:
    """Lay a stage out as parallelize does, and run it -> what the next stage is given."""
    tp, sequence = layout.size("tp"), layout.config.sequence
    streams = _watch(stage, layout)
    _apply_precision(stage, recipe.train.precision)
    if tp > 1:
        take_share(stage, tp, sequence=sequence)
    apply_recompute(stage, layout.config.recompute, early_stop=tp == 1)
    if layout.size("pp") > 1:
        make_edges_dense(stage)
    memory, out = stage_memory(
        partial(stage, *inputs, **small),
        weights=list(stage.parameters()),
        inputs=inputs,
        split=layout.size("pp") > 1 and splits_backward(layout) and not weights_meet(stage),
    )
    run = StageRun(
        memory=memory,
        received=sum(x.nbytes for x in inputs if x.is_floating_point()),
        handed_on=sum(x.nbytes for x in out),
        streams=tuple(streams.values()),
    )
    return run, tuple(x.requires_grad_() for x in out)


_STORED = {"fp64": torch.float64, "bf16-pure": torch.bfloat16, "bf16-fsdp": torch.bfloat16}
"""FSDP's bf16 is computed with as if nothing else were stored."""


def _apply_precision(stage: nn.Module, precision: Precision) -> None:
    """As parallelize does; but torch converts no fake weights in place, and float8's products keep
    what bf16's do but for the weights' copies."""
    if precision not in _STORED:
        apply_precision(stage, "bf16" if precision == "float8" else precision, _CPU)
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
        if isinstance(module, Decoder) and module.embed is not None:
            module.embed.token.register_forward_hook(look_up)
        if isinstance(module, Decoder) and module.head is not None:
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
