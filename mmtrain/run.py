"""Composes a recipe into a run: build, parallelize, train, evaluate, export, report.

Data flows one way: recipe -> data -> model -> parallelize -> loop -> checkpoint -> eval -> report.
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmtrain.data.bad_samples import BAD_SAMPLES_FILE, BadSampleLog
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
from mmtrain.data.transforms import PreprocessConfig
from mmtrain.decode_config import encode
from mmtrain.errors import UsageError
from mmtrain.eval import Encoder, EvalResult, evaluate_retrieval, evaluate_zero_shot, write_result
from mmtrain.eval.classes import class_list
from mmtrain.eval.prompts import load_templates
from mmtrain.eval.samples import open_source
from mmtrain.loading import load, save_model
from mmtrain.models import Clip
from mmtrain.models.clip import hidden_matrix_names, layer_ids, lock_tower, no_decay_names
from mmtrain.models.transfer import copy_weights
from mmtrain.optim import Ema, build_optimizers
from mmtrain.parallel import Layout, build_layout, parallelize, pick_device
from mmtrain.recipe import TrainRecipe, load_recipe, resolve
from mmtrain.report import write_report
from mmtrain.train.contrastive import ContrastiveObjective
from mmtrain.train.guard import EXIT_STOPPED, Guard, StopSignals
from mmtrain.train.loop import Loop, total_steps
from mmtrain.train.metrics import MetricsLog
from mmtrain.train.ranks import gather_rarely, is_alone, on_rank_0
from mmtrain.train.run_folder import open_run_folder, write_facts
from mmtrain.train.state import Identity, RunState, as_fp32
from mmtrain.train.step import build_schedule

INTERRUPT_STATUS = 130  # 128 + SIGINT, as a shell reports it


@dataclass(frozen=True, kw_only=True)
class Run:
    """A composed run: the parts that the recipe describes, wired together."""

    recipe: TrainRecipe
    folder: Path
    layout: Layout
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    data: ImageTextData
    state: RunState
    total_steps: int

    def encoder(self) -> Encoder:
        """The current weights (averaged ones where EMA is on) as evaluation takes them, in fp32:
        the model that export/ would hold now, whole on every rank, which share out the samples."""
        with torch.device("meta"):
            model = Clip(self.recipe.model.clip)
        model.load_state_dict(as_fp32(self.state.whole_weights()), assign=True)
        return Encoder(
            model=model.eval(),
            tokenizer=self.tokenizer,
            preprocess=self.preprocess,
            device=self.layout.device,
            batch_size=self.recipe.eval.batch_size,
            workers=self.recipe.data.workers,
            group=None if is_alone() else dist.group.WORLD,
        )

    def evaluate(self, log: MetricsLog | None) -> Encoder:
        """Run the recipe's evaluations over all ranks, into RUN/eval -> what was evaluated."""
        encoder, config = self.encoder(), self.recipe.eval
        for one in config.zero_shot:
            result = evaluate_zero_shot(
                encoder,
                data=one.data,
                classes=one.classes,
                label_key=one.label_key,
                templates=one.templates,
            )
            self._keep(one.name, result, log, ("top1", "top5"))
        for one in config.retrieval:
            result = evaluate_retrieval(encoder, data=one.data, captions=one.captions)
            self._keep(one.name, result, log, ("i2t_recall@1", "t2i_recall@1"))
        return encoder

    def _keep(
        self, name: str, result: EvalResult, log: MetricsLog | None, keys: tuple[str, ...]
    ) -> None:
        path = self.folder / "eval" / f"{name}.json"
        on_rank_0(lambda: write_result(path, result, step=self.state.step))
        if log is not None:
            figures = "  ".join(f"{key} {result.figures[key]:.2%}" for key in keys)
            log.say(f"step {self.state.step}  {name}: {figures}")

    def save(self) -> Path:
        """Write and seal a checkpoint."""
        keep = self.recipe.train.keep_checkpoints
        return self.state.save(self.folder, keep=keep, recipe=encode(self.recipe))


def train_command(
    *, recipe: Path, overrides: list[str], run_dir: Path | None, resume: bool
) -> Path:
    """`mmtrain train` -> the run folder.

    Raises:
        UsageError: a mistake in the recipe, the data or the run folder.
        SystemExit: a signal asked to stop; the run was saved.
    """
    if run_dir is not None:
        overrides = [*overrides, "--run.dir", str(run_dir)]
    loaded = load_recipe(recipe, overrides)
    layout = build_layout(loaded.parallel, pick_device(loaded.train.device))
    try:
        with StopSignals() as signals:
            return _train(loaded, layout, resume=resume, signals=signals)
    finally:
        if not is_alone():
            dist.destroy_process_group()


def _train(recipe: TrainRecipe, layout: Layout, *, resume: bool, signals: StopSignals) -> Path:
    folder = Path(recipe.run.dir)
    run = build_run(recipe, layout)
    check_evaluations(run.recipe)
    open_run_folder(folder, resume=resume)
    if resume:
        _resume(run)
    _write_facts(run)
    with _open_log(run) as log:
        guard = Guard(folder, max_bad_steps=recipe.train.max_bad_steps, signals=signals)
        loop = Loop(
            config=recipe.train,
            optim=recipe.optim,
            state=run.state,
            data=run.data,
            total_steps=run.total_steps,
            guard=guard,
            log=log.log,
            save=run.save,
            evaluate=lambda: _forget(run.evaluate(log.log)),
            evaluate_every=recipe.eval.every,
        )
        if not loop.run():
            _leave(run, log, signals)
        encoder = run.evaluate(log.log)
        on_rank_0(lambda: _export(run, encoder))
        log.say(f"done: {folder} (report.html, export/, eval/, checkpoints/)")
    return folder


def build_run(recipe: TrainRecipe, layout: Layout) -> Run:
    """Compose data, model, layout, objective and optimizers.

    Raises:
        UsageError: the recipe does not fit the data, the ranks or itself.
    """
    if recipe.train.deterministic:
        # What cuBLAS asks for to repeat itself; read when the first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    start = None if recipe.model.init is None else load(recipe.model.init)
    asked = recipe.tokenizer != TokenizerConfig()
    tokenizer = build_tokenizer(recipe.tokenizer) if asked or start is None else start[2]
    recipe = resolve(recipe, tokenizer)
    preprocess = PreprocessConfig(
        image_size=recipe.model.vision.image_size,
        resize_mode=recipe.data.resize_mode,
        interpolation=recipe.data.interpolation,
    )
    model = Clip(recipe.model.clip).init_weights(recipe.run.seed)
    if start is not None:
        try:
            copy_weights(start[0], model)
        except ValueError as error:
            raise UsageError(f"model.init = {recipe.model.init}: {error}") from error
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
    return Run(
        recipe=recipe,
        folder=Path(recipe.run.dir),
        layout=layout,
        tokenizer=tokenizer,
        preprocess=preprocess,
        data=data,
        state=_build_state(recipe, model, layout, data),
        total_steps=total_steps(recipe.train, batches_per_epoch=data.batches_per_epoch),
    )


def _build_state(recipe: TrainRecipe, model: Clip, layout: Layout, data: ImageTextData) -> RunState:
    for tower, unlocked in ((model.vision, recipe.lock.vision), (model.text, recipe.lock.text)):
        if unlocked is not None:
            lock_tower(tower, unlocked_layers=unlocked)
    names = {
        "no_decay": no_decay_names(model),
        "hidden_matrices": hidden_matrix_names(model),
        "layer_ids": layer_ids(model),
    }
    precision = recipe.train.precision
    stages = parallelize(model, layout, precision=precision, compile=recipe.train.compile)
    objective = ContrastiveObjective(
        model, recipe.loss, layout=layout, seed=recipe.run.seed, precision=precision
    )
    objective.to(layout.device)
    named = {n: p for stage in stages for n, p in stage.named_parameters()}
    named |= objective.parameters()
    decay = recipe.optim.ema_decay
    return RunState(
        layout=layout,
        stages=stages,
        objective=objective,
        schedule=build_schedule(stages, layout, num_microbatches=recipe.train.microbatches),
        optimizers=build_optimizers(named.items(), recipe.optim, **names),
        ema=None if decay is None else Ema(named.items(), decay=decay),
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
        ),
    )


def check_evaluations(recipe: TrainRecipe) -> None:
    """Open everything that an evaluation will need: a typo must not cost a night of training."""
    names = [one.name for one in (*recipe.eval.zero_shot, *recipe.eval.retrieval)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"eval: the name {name!r} is there twice; each writes eval/NAME.json")
    for one in recipe.eval.zero_shot:
        class_list(one.classes)
        load_templates(one.templates)
        open_source(one.data, None)
    for one in recipe.eval.retrieval:
        open_source(one.data, None)


def _resume(run: Run) -> None:
    path = run.state.resume(run.folder, warn=_say)
    if path is None:
        _say(f"{run.folder} has no checkpoint yet: starting at step 0")
    else:
        _say(f"resuming from {path}")
    if run.state.step > run.total_steps:
        raise UsageError(
            f"{path} is of step {run.state.step}, beyond the {run.total_steps} steps of this "
            "recipe; raise train.steps or train.epochs"
        )


def _write_facts(run: Run) -> None:
    facts: dict[str, Any] = {
        "data": {
            "num_samples": run.data.num_samples,
            "fingerprint": run.data.fingerprint,
            "batches_per_epoch": run.data.batches_per_epoch,
        },
        "total_steps": run.total_steps,
        "ranks": 1 if is_alone() else dist.get_world_size(),
        "device": run.layout.device.type,
        "threads": torch.get_num_threads(),
    }
    recipe = encode(run.recipe)
    on_rank_0(lambda: write_facts(run.folder, recipe=recipe, facts=facts))


def _open_log(run: Run) -> "_Log":
    if not run.layout.is_main:
        return _Log(None)
    return _Log(
        MetricsLog(
            run.folder,
            run.recipe.log,
            total_steps=run.total_steps,
            start_step=run.state.step,
            recipe=encode(run.recipe),
        )
    )


class _Log:
    """The metrics' log of the main rank, nothing on the others."""

    def __init__(self, log: MetricsLog | None) -> None:
        self.log = log

    def say(self, text: str) -> None:
        if self.log is not None:
            self.log.say(text)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self.log is not None:
            self.log.close()


def _export(run: Run, encoder: Encoder) -> None:
    assert isinstance(encoder.model, Clip)
    folder = run.folder / "export"
    save_model(folder, model=encoder.model, tokenizer=run.tokenizer, preprocess=run.preprocess)
    write_report(run.folder)


def _leave(run: Run, log: _Log, signals: StopSignals) -> None:
    """End the process of a run that was told to stop; it is saved."""
    name = "a signal to another rank" if signals.received is None else signals.received.name
    log.say(f"stopped by {name} at step {run.state.step}, saved; go on with --resume")
    interrupted = signals.received == signal.SIGINT
    raise SystemExit(INTERRUPT_STATUS if interrupted else EXIT_STOPPED)


def _forget(_: object) -> None:
    """For a callback whose result nobody wants."""


def _say(line: str) -> None:
    if is_alone() or dist.get_rank() == 0:
        print(f"mmtrain: {line}", file=sys.stderr)
