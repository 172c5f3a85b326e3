"""Composes a recipe into a run: data, model, layout, objective, optimizers, wired together."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.build.idle import idle_notes, refuse_idle
from mmtrain.build.memory import check_memory
from mmtrain.build.phases import check_phases, phase_notes
from mmtrain.build.resolve import begun_tokenizer, resolve, run_tokenizer
from mmtrain.build.tasks import build_task
from mmtrain.checkpoint.background_save import BackgroundSave
from mmtrain.data.accounts import EpochAccounts
from mmtrain.data.bad_samples import BAD_SAMPLES_FILE, BadSampleLog
from mmtrain.data.batch import SampleBatch
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.numbered import NumberedData
from mmtrain.data.streamed import StreamedData
from mmtrain.errors import UsageError
from mmtrain.eval.forward_size import forward_size
from mmtrain.eval.scheduled import check_evaluation, command_words, run_evaluation
from mmtrain.loading.start import read_start
from mmtrain.models import Clip
from mmtrain.models.parameters import parameter_names
from mmtrain.models.vqa import Vqa
from mmtrain.optim.ema import Ema
from mmtrain.optim.loss_scale import LossScale
from mmtrain.optim.optimizer import build_optimizers
from mmtrain.parallel.apply import parallelize
from mmtrain.parallel.compile import why_not
from mmtrain.parallel.mesh import Layout
from mmtrain.peft import LoraDropout, count_parameters
from mmtrain.ranks import gather
from mmtrain.recipe import TrainRecipe
from mmtrain.settings.decode import encode
from mmtrain.tasks.task import Shared, Task
from mmtrain.train.adapting import adapt, lock_towers, plain_tensors, save_adapter
from mmtrain.train.config import total_steps
from mmtrain.train.evaluations import Failed, attempt
from mmtrain.train.flags import Wishes
from mmtrain.train.metrics import MetricsLog
from mmtrain.train.objective import Objective
from mmtrain.train.run_folder import TOKENIZER
from mmtrain.train.state import Identity, RunState, as_fp32
from mmtrain.train.step import build_schedule
from mmtrain.train.transfer import Transfer
from mmtrain.train.update import Step, take_step_of_run

ADAPTER = "adapter"
"""The folder of a run that its adapter is in."""
_CUTS_TOWERS = ("pp", "tp", "dp_shard")
"""The mesh's axes along which no rank holds a whole tower."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A composed run: the parts that the recipe describes, wired together."""

    recipe: TrainRecipe
    folder: Path
    layout: Layout
    task: Task
    """What is trained for."""
    preprocess: PreprocessConfig
    state: RunState
    total_steps: int
    num_trainable: int
    """Parameters of the model that train."""
    num_parameters: int
    """All of them."""
    background: BackgroundSave | None
    """Writes the checkpoints while training goes on, with train.async_checkpoint."""
    notes: tuple[str, ...] = ()
    """Lines for the user: where the recipe contradicts what the run starts from."""

    @property
    def data(self) -> NumberedData[Any]:
        """The batches."""
        return self.task.data

    def plain_weights(self) -> dict[str, Tensor]:
        """The current weights (averaged ones where EMA is on) of the plain model, in fp32."""
        return plain_tensors(as_fp32(self.state.whole_weights()), self.recipe.peft)

    def evaluator(self) -> Any:
        """The current weights as evaluation takes them: the model that export/ would hold now,
        whole on every rank, which share out the samples."""
        return self.task.evaluator(self.plain_weights())

    def check_evaluations(self) -> None:
        """Try everything that the recipe's evaluations will need.

        Raises:
            UsageError: it cannot be done, or is not of this task.
        """
        for one in self.recipe.eval.of(self.task.judges):
            self.task.check_evaluation(one)
            check_evaluation(one, self.preprocess)

    def evaluate(self, log: MetricsLog | None) -> tuple[Any, list[Failed]]:
        """Run the recipe's evaluations over all ranks, into RUN/eval -> what was evaluated, and
        those that failed."""
        evaluator = self.evaluator()
        attempts = (
            attempt(
                one.name,
                partial(run_evaluation, evaluator, one),
                words=command_words(one),
                run_dir=self.folder,
                step=self.state.step,
                log=log,
            )
            for one in self.recipe.eval.of(self.task.judges)
        )
        return evaluator, [failed for failed in attempts if failed is not None]

    def export(self, evaluator: Any, weights: Mapping[str, Tensor] | None) -> None:
        """Write export/, and adapter/ where the run trained one; on one rank.

        Args:
            evaluator: has the plain model with the current weights.
            weights: from state.whole_weights, of a run with an adapter.
        """
        if weights is not None and (peft := self.recipe.peft) is not None:
            folder, base = self.folder / ADAPTER, self.task.base
            save_adapter(folder, evaluator.model, weights, config=peft, base=base)
        self.task.export(self.folder / "export", evaluator)

    def take_step(self, batch: SampleBatch, transfer: Transfer) -> Step:
        """The coming step, without what the loop does beside: logs, checkpoints, evaluations."""
        return take_step_of_run(
            self.state,
            batch,
            data=self.data,
            optim=self.recipe.optim,
            total_steps=self.total_steps,
            transfer=transfer,
            wishes=Wishes(),
        )

    def save(self) -> None:
        """Write and seal a checkpoint, or begin to in the background."""
        self.state.save(
            self.folder,
            keep=self.recipe.train.keep_checkpoints,
            recipe=encode(self.recipe),
            background=self.background,
            stream=self._stream_state(),
        )

    def _stream_state(self) -> dict[str, Any] | None:
        """Where a stream stands on all ranks. Collective where there is one."""
        if not isinstance(self.data, StreamedData):
            return None
        own = self.data.stream_state()
        states = gather(own)
        places = {process: place for state in states for process, place in state["places"].items()}
        return own | {"places": places}


def build_run(recipe: TrainRecipe, layout: Layout, *, begun: bool = False) -> Run:
    """Compose data, model, layout, objective and optimizers.

    Args:
        recipe: as read.
        layout: the mesh.
        begun: all weights will come from the run's own checkpoint: nothing is read of a model that
            it started from.

    Raises:
        UsageError: the recipe does not fit the data, the ranks or itself.
    """
    refuse_idle(recipe)
    if recipe.train.deterministic:
        use_deterministic_kernels()
    if begun:
        start, tokenizer = None, begun_tokenizer(recipe, Path(recipe.run.dir))
    else:
        start = read_start(recipe.model.init, name=recipe.model.name)
        tokenizer = run_tokenizer(recipe, start)
    recipe = resolve(recipe, tokenizer)
    check_memory(recipe, layout)
    shared = Shared(
        data=recipe.data,
        tokenizer=tokenizer,
        preprocess=build_preprocess(recipe),
        start=start,
        begun=begun,
        kept=Path(recipe.run.dir) / TOKENIZER,
        layout=layout,
        seed=recipe.run.seed,
        batch_size=recipe.train.batch_size,
        phases=recipe.train.phase,
        eval_batch_size=forward_size(recipe.eval.batch_size, fast=recipe.eval.fast),
    )
    task = build_task(recipe, shared)
    recipe = replace(recipe, **task.sections())
    check_phases(recipe, task.data.phases, layout)
    dropout = _freeze(task, recipe, layout, begun=begun)
    num_trainable, num_parameters = count_parameters(task.model)
    num_steps = total_steps(recipe.train, task.data)
    unless, told = _compiling(recipe, layout, num_steps)
    notes = idle_notes(
        recipe,
        total_steps=num_steps,
        ranks=layout.size("pp") * layout.size("dp") * layout.size("tp"),
        shards=1 if layout.mesh is None else layout.mesh["dp_shard"].size(),
    )
    return Run(
        recipe=recipe,
        folder=Path(recipe.run.dir),
        layout=layout,
        task=task,
        preprocess=shared.preprocess,
        state=_lay_out(recipe, task, layout, dropout, compile=unless is None),
        num_trainable=num_trainable,
        num_parameters=num_parameters,
        total_steps=num_steps,
        background=BackgroundSave() if recipe.train.async_checkpoint else None,
        notes=(*notes, *told, *phase_notes(recipe, task.data.phases), *task.notes()),
    )


def _compiling(
    recipe: TrainRecipe, layout: Layout, num_steps: int
) -> tuple[str | None, tuple[str, ...]]:
    """Why blocks are not compiled, None: they are; and what is told of a choice that was ours, the
    same on every rank, whatever else its host has."""
    train = recipe.train
    if train.compile != "auto":
        return (None if train.compile else "as the recipe says"), ()
    whys = gather(why_not(layout, train.precision, num_steps=num_steps))
    why = next((why for why in whys if why is not None), None)
    chosen = "compiled" if why is None else f"not compiled: {why}"
    return why, (f'train.compile = "auto": the blocks are {chosen}',)


def build_preprocess(recipe: TrainRecipe) -> PreprocessConfig:
    """What an image goes through before the model of a recipe."""
    return PreprocessConfig(
        image_size=recipe.model.vision.image_size,
        resize_mode=recipe.data.resize_mode,
        interpolation=recipe.data.interpolation,
    )


def use_deterministic_kernels() -> None:
    """Only kernels that repeat themselves bit for bit, in this process from here on."""
    # What cuBLAS asks for to repeat itself; read when the first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def _freeze(task: Task, recipe: TrainRecipe, layout: Layout, *, begun: bool) -> LoraDropout | None:
    """Apply [lock] or [peft] -> what draws the adapter's dropout, if it has any."""
    lock_towers(task.model.towers(), recipe.lock)
    if recipe.peft is None:
        return None
    config = replace(recipe.peft, init=None) if begun else recipe.peft
    dropout = adapt(task.model, config, layout=layout, seed=recipe.run.seed)
    if dropout is not None and recipe.train.text_groups > 1:
        raise UsageError(
            f"train.text_groups = {recipe.train.text_groups} takes texts in another order, which "
            "peft.dropout does not follow; set one of them to its default"
        )
    task.check_adapted()
    return dropout


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


def _lay_out(
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
            named.items(), recipe.optim, zero_group=layout.zero_group, **names
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
