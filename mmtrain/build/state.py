"""The model over the mesh, and what trains it: a run's state before its first step."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mmtrain.data.accounts import EpochAccounts
from mmtrain.data.bad_samples import BAD_SAMPLES_FILE, BadSampleLog
from mmtrain.data.numbered import NumberedData
from mmtrain.errors import UsageError
from mmtrain.models import Clip
from mmtrain.models.parameters import parameter_names
from mmtrain.models.vqa import Vqa
from mmtrain.optim.ema import Ema
from mmtrain.optim.loss_scale import LossScale
from mmtrain.optim.optimizer import build_optimizers
from mmtrain.parallel.apply import parallelize
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.precision import multiplies_bf16
from mmtrain.peft import LoraDropout
from mmtrain.ranks import gather
from mmtrain.recipe import TrainRecipe
from mmtrain.tasks.task import Task
from mmtrain.train.adapting import adapt, check_whole, lock_parts
from mmtrain.train.objective import Objective
from mmtrain.train.state import Identity, RunState
from mmtrain.train.step import build_schedule

_CUTS_TOWERS = ("pp", "tp", "dp_shard")
"""The mesh's axes along which no rank holds a whole tower."""


def freeze(task: Task, recipe: TrainRecipe, layout: Layout, *, begun: bool) -> LoraDropout | None:
    """Apply [lock] or [peft] -> what draws the adapter's dropout, if it has any."""
    lock_parts(task.model, recipe.lock)
    if recipe.peft is None:
        return None
    config = replace(recipe.peft, init=None) if begun else recipe.peft
    check_whole(config, layout)
    dropout = adapt(task.model, config, seed=recipe.run.seed)
    if dropout is not None and recipe.train.text_groups > 1:
        raise UsageError(
            f"train.text_groups = {recipe.train.text_groups} takes texts in another order, which "
            "peft.dropout does not follow; set one of them to its default"
        )
    task.check_adapted()
    return dropout


def lay_out(
    recipe: TrainRecipe,
    task: Task,
    layout: Layout,
    dropout: LoraDropout | None,
    *,
    compile: bool,
) -> RunState:
    """The model over the mesh, and what trains it."""
    _group_texts(task.model, recipe, layout)
    factors = {
        name: lr / recipe.optim.lr
        for name, _ in task.model.named_parameters()
        for start, lr in task.learning_rates().items()
        if name.startswith(start)
    }
    names = vars(parameter_names(task.model)) | {"lr_factors": factors}
    train = recipe.train
    stages = parallelize(task.model, layout, precision=train.precision, compile=compile)
    if dropout is not None:
        dropout.watch(stages[0])
    objective = task.objective(lora_dropout=dropout is not None)
    for stage in stages:
        stage.set_criterion(objective.criterion)  # pyright: ignore[reportCallIssue]
    return _build_state(
        recipe,
        stages=stages,
        objective=objective,
        names=names,
        layout=layout,
        data=task.data,
    )


def _group_texts(model: Clip | Vqa, recipe: TrainRecipe, layout: Layout) -> None:
    """Apply train.text_groups, or refuse it where it cannot be had."""
    groups = recipe.train.text_groups
    if groups == 1:
        return
    if layout.config.cpu_offload:
        raise UsageError(
            f"train.text_groups = {groups} would fetch the text tower's weights again for every "
            "group with parallel.cpu_offload = true; set one of them to its default"
        )
    sizes = {} if layout.mesh is None else {a: layout.mesh[a].size() for a in _CUTS_TOWERS}
    for axis in (axis for axis, size in sizes.items() if size > 1):
        # A pipeline's shapes are fixed, a sequence shard has no text's end, and FSDP would gather
        # the weights anew for every group.
        raise UsageError(
            f"train.text_groups = {groups} needs a whole text tower on every rank, not "
            f"parallel.{axis} = {sizes[axis]}; set train.text_groups = 1"
        )
    if not recipe.model.text.cuts_padding:
        raise UsageError(
            f"train.text_groups = {groups} has no effect: this text tower sees its padding; set "
            "train.text_groups = 1"
        )
    assert model.text is not None, "only towers that match captions come here"
    model.text.num_groups = groups


def _build_state(
    recipe: TrainRecipe,
    *,
    stages: Sequence[nn.Module],
    objective: Objective,
    names: Mapping[str, Any],
    layout: Layout,
    data: NumberedData[Any],
) -> RunState:
    """A run before its first step: schedule, optimizers, averages, the log of bad samples.

    Args:
        recipe: resolved.
        stages: from `parallelize`.
        objective: of the task.
        names: which parameters the optimizers treat otherwise, as `build_optimizers` takes them.
        layout: the mesh.
        data: the batches.
    """
    named = {n: p for stage in stages for n, p in stage.named_parameters()}
    named |= objective.parameters()
    decay = recipe.optim.ema_decay
    return RunState(
        layout=layout,
        stages=stages,
        objective=objective,
        schedule=build_schedule(
            stages,
            layout,
            num_microbatches=recipe.train.microbatches,
            batch_size=recipe.train.batch_size,
        ),
        optimizers=build_optimizers(
            named.items(),
            recipe.optim,
            zero_group=layout.zero_group,
            bf16_products=multiplies_bf16(recipe.train.precision, layout.device),
            **names,
        ),
        ema=None if decay is None else Ema(named.items(), decay=decay),
        loss_scale=LossScale(recipe.train.loss_scale, device=layout.device)
        if recipe.train.precision == "fp16"
        else None,
        bad_samples=BadSampleLog(
            Path(recipe.run.dir) / BAD_SAMPLES_FILE if layout.is_main else None,
            max_bad_fraction=recipe.data.max_bad_fraction,
            gather=gather,
        ),
        accounts=EpochAccounts(
            [source.name for source in recipe.data.sources],
            [source.num_samples for source in data.sources],
            rank=layout.rank("dp"),
            gather=gather,
        ),
        identity=Identity(
            seed=recipe.run.seed,
            batch_size=recipe.train.batch_size,
            num_samples=data.num_samples,
            data_fingerprint=data.fingerprint,
            tokenizer=data.tokenizer.fingerprint,
            teachers=objective.teachers(),
        ),
    )
