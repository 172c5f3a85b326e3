"""Composes a recipe into a run: data, model, layout, objective, optimizers, wired together."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtrain.build.idle import idle_notes, refuse_idle
from mmtrain.build.memory import check_memory
from mmtrain.build.phases import check_phases, phase_notes
from mmtrain.build.resolve import begun_tokenizer, resolve, run_tokenizer
from mmtrain.build.state import freeze, lay_out
from mmtrain.build.tasks import build_task
from mmtrain.checkpoint.background_save import BackgroundSave
from mmtrain.data.batch import SampleBatch
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.numbered import NumberedData
from mmtrain.data.streamed import StreamedData
from mmtrain.errors import UsageError
from mmtrain.eval.forward_size import forward_size
from mmtrain.eval.scheduled import check_evaluation, command_words, run_evaluation
from mmtrain.loading.start import read_start
from mmtrain.nn.products import tf32_products
from mmtrain.parallel.compile import why_not
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.precision import check_tf32
from mmtrain.peft import LoraDropout, count_parameters
from mmtrain.ranks import gather, on_every_rank
from mmtrain.recipe import TrainRecipe
from mmtrain.settings.decode import encode
from mmtrain.tasks.task import Shared, Task
from mmtrain.train.adapting import plain_tensors, save_adapter
from mmtrain.train.config import total_steps
from mmtrain.train.evaluations import Failed, attempt
from mmtrain.train.flags import Wishes
from mmtrain.train.metrics import MetricsLog
from mmtrain.train.run_folder import TOKENIZER
from mmtrain.train.state import RunState, as_fp32
from mmtrain.train.transfer import Transfer
from mmtrain.train.update import Step, take_step_of_run

ADAPTER = "adapter"
"""The folder of a run that its adapter is in."""


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
        """Try everything that the recipe's evaluations will need: a typo must not cost a night of
        training.

        Raises:
            UsageError: it cannot be done, or is not of this task.
        """
        check_tf32(self.recipe.eval.precision, self.layout.device, key="eval.precision")
        _check_names([one.name for one in self.recipe.eval.all])
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
                words=[*command_words(one), *self.recipe.eval.running],
                run_dir=self.folder,
                step=self.state.step,
                log=log,
            )
            for one in self.recipe.eval.of(self.task.judges)
        )
        with tf32_products(False):  # in a format of their own, whatever the training is in
            return evaluator, [failed for failed in attempts if failed is not None]

    def export(self, evaluator: Any, weights: Mapping[str, Tensor] | None) -> list[str]:
        """Write export/, and adapter/ where the run trained one; on one rank -> lines for the user.

        Args:
            evaluator: has the plain model with the current weights.
            weights: from state.whole_weights, of a run with an adapter.
        """
        notes: list[str] = []
        if weights is not None and (peft := self.recipe.peft) is not None:
            folder, base = self.folder / ADAPTER, self.task.base
            left = save_adapter(folder, evaluator.model, weights, config=peft, base=base)
            if left:
                more = f" and {len(left) - 1} more" if len(left) > 1 else ""
                lacks = f"{folder} lacks {left[0]}{more}"
                notes.append(f"{lacks}: peft has no place for it; export/ has it")
        self.task.export(self.folder / "export", evaluator)
        return notes

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
    """Compose data, model, layout, objective and optimizers. Collective.

    Args:
        recipe: as read.
        layout: the mesh.
        begun: all weights will come from the run's own checkpoint: nothing is read of a model that
            it started from.

    Raises:
        UsageError: on every rank, the recipe does not fit the data, the ranks or itself.
    """
    if recipe.train.deterministic:
        use_deterministic_kernels()
    # What one rank cannot read, none waits for.
    recipe, shared, task, dropout = on_every_rank(partial(_compose, recipe, layout, begun=begun))
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
        state=lay_out(recipe, task, layout, dropout, compile=unless is None),
        num_trainable=num_trainable,
        num_parameters=num_parameters,
        total_steps=num_steps,
        background=BackgroundSave() if recipe.train.async_checkpoint else None,
        notes=(*notes, *told, *phase_notes(recipe, task.data.phases), *task.notes()),
    )


def _compose(
    recipe: TrainRecipe, layout: Layout, *, begun: bool
) -> tuple[TrainRecipe, Shared, Task, LoraDropout | None]:
    """The resolved recipe and what is trained for, as one rank reads it by itself; see
    `build_run`."""
    refuse_idle(recipe)
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
        eval_precision=recipe.eval.precision,
    )
    task = build_task(recipe, shared)
    recipe = replace(recipe, **task.sections())
    check_phases(recipe, task.data.phases, layout)
    return recipe, shared, task, freeze(task, recipe, layout, begun=begun)


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


def _check_names(names: Sequence[str]) -> None:
    """Each evaluation writes a file of its name."""
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"eval: the name {name!r} is there twice; each writes eval/NAME.json")
        if not re.fullmatch(r"[^./\\\0][^/\\\0]*", name) or name.endswith((".failed", ".history")):
            raise UsageError(
                f"eval: the name {name!r} cannot be a file's, eval/NAME.json; use letters, digits, "
                "_ and -"
            )


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
