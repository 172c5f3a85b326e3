"""Composes a recipe into a run: data, model, layout, objective, optimizers, wired together."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtrain.build.idle import idle_notes, refuse_idle
from mmtrain.build.memory import check_memory
from mmtrain.build.notes import clip_notes
from mmtrain.checkpoint.background_save import BackgroundSave
from mmtrain.data.bad_samples import BAD_SAMPLES_FILE, BadSampleLog
from mmtrain.data.image_text import ImageTextData, NumberedData
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.eval import Encoder
from mmtrain.eval.scheduled import command_words, run_evaluation
from mmtrain.interop.open_clip_training import read_open_clip_training
from mmtrain.interop.timm import read_timm_tower
from mmtrain.loading.start import read_start
from mmtrain.models import Clip
from mmtrain.models.parameters import lock_tower, parameter_names
from mmtrain.models.transfer import copy_image_tower, copy_weights
from mmtrain.models.vqa import Vqa
from mmtrain.optim import Ema, LossScale, build_optimizers
from mmtrain.parallel import Layout, parallelize
from mmtrain.peft import LoraDropout, count_parameters
from mmtrain.ranks import gather, gather_rarely, is_alone
from mmtrain.recipe import TrainRecipe, resolve, run_tokenizer
from mmtrain.settings.decode import encode
from mmtrain.tasks.contrastive import contrastive_objective
from mmtrain.train.adapting import adapt, plain_tensors, save_adapter
from mmtrain.train.config import total_steps
from mmtrain.train.evaluations import Evaluation, Failed, attempt
from mmtrain.train.metrics import MetricsLog
from mmtrain.train.objective import Objective
from mmtrain.train.state import Identity, RunState, as_fp32
from mmtrain.train.step import build_schedule

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
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    data: NumberedData[Any]
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

    def plain_weights(self) -> dict[str, Tensor]:
        """The current weights (averaged ones where EMA is on) of the plain model, in fp32."""
        return plain_tensors(as_fp32(self.state.whole_weights()), self.recipe.peft)

    def export_adapter(self, model: Clip | Vqa, weights: Mapping[str, Tensor]) -> None:
        """Write RUN/adapter where the run trained one.

        Args:
            model: the plain model with the current weights.
            weights: from state.whole_weights.
        """
        peft, vqa = self.recipe.peft, self.recipe.vqa
        if peft is not None:
            base = (vqa and vqa.init) or self.recipe.model.init or ""
            save_adapter(self.folder / ADAPTER, model, weights, config=peft, base=base)

    def encoder(self) -> Encoder:
        """The current weights (averaged ones where EMA is on) as evaluation takes them, in fp32:
        the model that export/ would hold now, whole on every rank, which share out the samples."""
        with torch.device("meta"):
            model = Clip(self.recipe.model.clip)
        model.load_state_dict(self.plain_weights(), assign=True)
        return Encoder(
            model=model.eval(),
            tokenizer=self.tokenizer,
            preprocess=self.preprocess,
            device=self.layout.device,
            batch_size=self.recipe.eval.batch_size,
            workers=self.recipe.data.workers,
            group=None if is_alone() else dist.group.WORLD,
        )

    def evaluate(self, log: MetricsLog | None) -> tuple[Any, list[Failed]]:
        """Run the recipe's evaluations over all ranks, into RUN/eval -> what was evaluated, and
        those that failed."""
        encoder = self.encoder()
        attempts = (
            self.attempt(one.name, partial(run_evaluation, encoder, one), command_words(one), log)
            for one in self.recipe.eval.of("towers")
        )
        return encoder, [failed for failed in attempts if failed is not None]

    def attempt(
        self, name: str, evaluate: Evaluation, words: list[str], log: MetricsLog | None
    ) -> Failed | None:
        """One evaluation of the current weights, as `train.evaluations.attempt` does it."""
        return attempt(
            name, evaluate, words=words, run_dir=self.folder, step=self.state.step, log=log
        )

    def save(self) -> None:
        """Write and seal a checkpoint, or begin to in the background."""
        self.state.save(
            self.folder,
            keep=self.recipe.train.keep_checkpoints,
            recipe=encode(self.recipe),
            background=self.background,
        )


def build_run(recipe: TrainRecipe, layout: Layout) -> Run:
    """Compose data, model, layout, objective and optimizers.

    Raises:
        UsageError: the recipe does not fit the data, the ranks or itself.
    """
    refuse_idle(recipe)
    if recipe.train.deterministic:
        use_deterministic_kernels()
    start = read_start(recipe.model.init, name=recipe.model.name)
    tokenizer = run_tokenizer(recipe, start)
    recipe = resolve(recipe, tokenizer)
    check_memory(recipe, layout)
    preprocess = build_preprocess(recipe)
    model = Clip(recipe.model.clip).init_weights(recipe.run.seed)
    if start is not None:
        _copy_start(start.key, lambda: copy_weights(start.model, model))
    if (folder := recipe.model.vision_init) is not None:
        tower = read_timm_tower(Path(folder))
        _copy_start(f"model.vision_init = {folder}", lambda: copy_image_tower(*tower, model))
    pipelined, cuts_padding = layout.size("pp") > 1, recipe.model.text.cuts_padding
    data = ImageTextData(
        recipe.data,
        preprocess=preprocess,
        tokenizer=tokenizer,
        seed=recipe.run.seed,
        batch_size=recipe.train.batch_size,
        rank=layout.rank("dp"),
        world_size=layout.size("dp"),
        images=layout.is_first_stage,
        # torch's pipeline stages fix their shapes at the first step; some towers see their padding.
        fixed_length=tokenizer.context_length if pipelined or not cuts_padding else None,
        pin_memory=layout.device.type == "cuda",
    )
    for part, unlocked in ((model.vision, recipe.lock.vision), (model.text, recipe.lock.text)):
        if unlocked is not None:
            lock_tower(part, unlocked_layers=unlocked)
    dropout = adapt_model(model, recipe, layout)
    num_trainable, num_parameters = count_parameters(model)
    num_steps = total_steps(recipe.train, batches_per_epoch=data.batches_per_epoch)
    return Run(
        recipe=recipe,
        folder=Path(recipe.run.dir),
        layout=layout,
        tokenizer=tokenizer,
        preprocess=preprocess,
        data=data,
        state=_build_state(recipe, model, layout, data, dropout),
        num_trainable=num_trainable,
        num_parameters=num_parameters,
        total_steps=num_steps,
        background=BackgroundSave() if recipe.train.async_checkpoint else None,
        notes=(
            *idle_notes(recipe, total_steps=num_steps),
            *clip_notes(recipe, start, tokenizer=tokenizer, preprocess=preprocess, model=model),
        ),
    )


def take_up_open_clip(run: Run) -> list[str]:
    """Go on with the training that model.init is of -> what was taken and what was not, in lines.

    Raises:
        UsageError: it is no checkpoint of open_clip's training, or beyond this run's end.
    """
    path = run.recipe.model.init
    assert path is not None, "checked when the recipe was read"
    training = read_open_clip_training(Path(path))
    step = training.epoch * run.data.batches_per_epoch
    if step >= run.total_steps:
        raise UsageError(
            f"model.init = {path} is of epoch {training.epoch}, step {step} here, and this run has "
            f"{run.total_steps} steps; raise train.epochs or train.steps"
        )
    optimizers = run.state.optimizers
    names = set().union(*gather(set(optimizers.state_dict())))
    taken = optimizers.load_moments(training.moments, steps=training.steps)
    taken = set().union(*gather(taken))
    run.state.step = step
    run.state.samples_seen = step * run.recipe.train.batch_size
    told = f"{path}: took the weights and AdamW's moments of {len(taken)} tensors (step "
    told += f"{training.steps:.0f}); epoch {training.epoch} begins, step {step} of this recipe"
    without = sorted(names - taken)
    return [
        told,
        "not taken, the recipe's hold: " + ", ".join((*training.left, "the order of the data")),
        *([f"without moments: {', '.join(without)}"] if without else []),
    ]


def _copy_start(key: str, copy: Callable[[], None]) -> None:
    """Copy weights to start from; name the key where they do not fit."""
    try:
        copy()
    except ValueError as error:
        raise UsageError(f"{key}: {error}") from error


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


def _group_texts(model: Clip, recipe: TrainRecipe, layout: Layout) -> None:
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
    model.text.num_groups = groups


def adapt_model(model: Clip | Vqa, recipe: TrainRecipe, layout: Layout) -> LoraDropout | None:
    """Apply the recipe's [peft] where there is one -> what draws its dropout, if it has any."""
    if recipe.peft is None:
        return None
    dropout = adapt(model, recipe.peft, layout=layout, seed=recipe.run.seed)
    if dropout is not None and recipe.train.text_groups > 1:
        raise UsageError(
            f"train.text_groups = {recipe.train.text_groups} takes texts in another order, which "
            "peft.dropout does not follow; set one of them to its default"
        )
    return dropout


def _build_state(
    recipe: TrainRecipe,
    model: Clip,
    layout: Layout,
    data: ImageTextData,
    dropout: LoraDropout | None,
) -> RunState:
    _group_texts(model, recipe, layout)
    names = vars(parameter_names(model))
    precision = recipe.train.precision
    stages = parallelize(model, layout, precision=precision, compile=recipe.train.compile)
    if dropout is not None:
        dropout.watch(stages[0])
    objective = contrastive_objective(
        model,
        recipe.loss,
        layout=layout,
        seed=recipe.run.seed,
        lora_dropout=dropout is not None,
    )
    return build_state(
        recipe, stages=stages, objective=objective, names=names, layout=layout, data=data
    )


def build_state(
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
    for stage in stages:
        stage.set_criterion(objective.criterion)  # pyright: ignore[reportCallIssue]
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
        loss_scale=LossScale(recipe.train.loss_scale) if recipe.train.precision == "fp16" else None,
        bad_samples=BadSampleLog(
            Path(recipe.run.dir) / BAD_SAMPLES_FILE if layout.is_main else None,
            max_bad_fraction=recipe.data.max_bad_fraction,
            gather=lambda bad: gather_rarely(bad, device=layout.device),
        ),
        identity=Identity(
            seed=recipe.run.seed,
            batch_size=recipe.train.batch_size,
            num_samples=data.num_samples,
            data_fingerprint=data.fingerprint,
            tokenizer=data.tokenizer.fingerprint,
        ),
    )
