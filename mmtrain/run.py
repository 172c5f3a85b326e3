"""Trains what a recipe describes: build, resume, loop, evaluate, export, report."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from mmtrain.build.alike import refuse_other_data, refuse_other_recipes
from mmtrain.build.mirror import RunMirror, refuse_held_mirror, take_begun, take_from_mirror
from mmtrain.build.open_clip_training import take_up_open_clip
from mmtrain.build.resumed import resume_run
from mmtrain.build.run import ADAPTER, Run, build_run
from mmtrain.build.told import headline, write_run_facts
from mmtrain.build.utilisation import build_utilisation
from mmtrain.data.storage.caches import caching
from mmtrain.data.storage.patience import waiting
from mmtrain.errors import ExitStatus
from mmtrain.files import writing
from mmtrain.nn.heap import kept_memory
from mmtrain.nn.products import fast_products
from mmtrain.parallel.mesh import Layout, build_layout, leave_ranks, pick_device
from mmtrain.ranks import is_alone, num_ranks, on_every_rank, on_rank_0, own_rank
from mmtrain.recipe import TrainRecipe
from mmtrain.report import write_report
from mmtrain.settings.decode import encode
from mmtrain.settings.paths import telling_places
from mmtrain.train.evaluations import refuse_failed
from mmtrain.train.guard import Guard, StopSignals
from mmtrain.train.loop import Loop
from mmtrain.train.metrics import MetricsLog
from mmtrain.train.run_folder import (
    drop_leftovers,
    has_begun,
    refuse_foreign,
    refuse_held,
    undone_on_failure,
)
from mmtrain.train.run_lock import LEASE_SECONDS, RunLock
from mmtrain.train.straggler import StragglerWatch
from mmtrain.train.watchdog import Watchdog

Resume = Literal["as it was", "with changes"] | None
"""Whether a run goes on, and with another recipe if need be. None: it begins."""


def train_command(*, recipe: TrainRecipe, resume: Resume, quiet: bool = False) -> Path:
    """`mmtrain train` -> the run folder.

    The recipe is read before this module is imported: a mistake in it does not wait for the engine.
    With `quiet` nothing is told of a run that goes well until its end; metrics.jsonl has it all.

    Raises:
        UsageError: a mistake in the recipe, the data or the run folder.
        SystemExit: a signal asked to stop; the run was saved.
    """
    layout = build_layout(recipe.parallel, pick_device(recipe.train.device))
    try:
        refuse_other_recipes(recipe)
        patient = waiting(recipe.data.retry_seconds)
        fast = fast_products(layout.device, tf32=recipe.train.precision == "tf32")
        kept = kept_memory(layout.device)
        open_cache = partial(recipe.data.open_cache, world_size=layout.size("dp"))
        cached = caching(on_every_rank(open_cache))
        own = _own_folder(recipe, resume=resume)
        with StopSignals() as signals, patient, cached, fast, kept, own:
            return _train(recipe, layout, resume=resume, signals=signals, quiet=quiet)
    finally:
        leave_ranks()


@contextmanager
def _own_folder(recipe: TrainRecipe, *, resume: Resume) -> Iterator[None]:
    """Within the context the run's folder is ours alone, and held no run if this is a new one."""
    folder = Path(recipe.run.dir)
    patience = 0.0 if resume is None else LEASE_SECONDS
    with RunLock(folder, named=f"run.dir = {folder}", say=_say, patience=patience):
        refuse_foreign(folder, resumes=resume is not None)
        if resume is None:
            refuse_held(folder)
            refuse_held_mirror(recipe.run)
        yield


def _train(
    recipe: TrainRecipe, layout: Layout, *, resume: Resume, signals: StopSignals, quiet: bool
) -> Path:
    folder = Path(recipe.run.dir)
    had_begun = on_rank_0(lambda: has_begun(folder))
    with nullcontext() if had_begun else undone_on_failure(folder), telling_places(recipe):
        run = _ready(recipe, layout, resume=resume)
    write_run_facts(run)
    for line in () if quiet else headline(run):
        _say(line)
    with (
        on_every_rank(partial(_open_log, run, quiet=quiet)) as log,
        _build_watchdog(run) as watchdog,
        RunMirror(run, say=log.say) as mirror,
    ):
        loop = _build_loop(run, log, watchdog, signals, mirror)
        if not loop.run():
            with watchdog.busy("sending to run.mirror"):
                mirror.finish()
            _leave(run, log, signals)
        with watchdog.busy("evaluating"):
            evaluator, failed = run.evaluate(log.log)
            weights = None if run.recipe.peft is None else run.state.whole_weights()
            with writing(run.folder):
                on_rank_0(lambda: _export(run, evaluator, weights, log))
        log.say(f"done: {run.folder} ({', '.join(_written(run.folder))})")
        with watchdog.busy("sending to run.mirror"):
            mirror.finish()
    refuse_failed(failed)
    mirror.refuse_behind()
    return run.folder


def _ready(recipe: TrainRecipe, layout: Layout, *, resume: Resume) -> Run:
    """The run as it will go on, and nothing of it written yet."""
    folder = Path(recipe.run.dir)
    if resume is not None and not on_rank_0(lambda: has_begun(folder)):
        take_begun(recipe, say=_say)
    begun = resume is not None and on_rank_0(lambda: has_begun(folder))
    run = build_run(recipe, layout, begun=begun)
    refuse_other_data(run.data)
    on_every_rank(run.check_evaluations)
    if resume is None:
        drop_leftovers(run.folder)
    else:
        take_from_mirror(run, say=_say)
        changed = resume == "with changes"
        run = resume_run(run, with_changes=changed, begun=begun, say=_say)
    run.data.check_length(run.total_steps, key=recipe.train.length)
    for line in run.notes:
        _say(line)
    if recipe.model.init_training and run.state.step == 0:
        for line in take_up_open_clip(run):
            _say(line)
    return run


def _written(folder: Path) -> Iterator[str]:
    """What a run has left in its folder."""
    for name in ("report.html", "export", ADAPTER, "eval", "checkpoints"):
        path = folder / name
        if path.is_file():
            yield name
        elif path.is_dir() and any(path.iterdir()):
            yield f"{name}/"


def _build_watchdog(run: Run) -> Watchdog:
    minutes = run.recipe.train.hang_minutes
    return Watchdog(
        run.folder,
        seconds=None if minutes is None else 60 * minutes,
        rank=own_rank(),
        world_size=num_ranks(),
    )


def _build_loop(
    run: Run, log: "_Log", watchdog: Watchdog, signals: StopSignals, mirror: RunMirror
) -> Loop:
    config = run.recipe.train
    factor = None if is_alone() else config.straggler_factor
    return Loop(
        config=config,
        optim=run.recipe.optim,
        state=run.state,
        data=run.data,
        total_steps=run.total_steps,
        guard=Guard(
            run.folder,
            max_bad_steps=config.max_bad_steps,
            roll_back=config.on_bad_steps == "roll_back",
            signals=signals,
        ),
        log=log.log,
        save=run.save,
        background=run.background,
        evaluate=lambda: _forget(run.evaluate(log.log)),
        roll_back=lambda step: run.state.roll_back(run.folder, until=step, warn=_say),
        watchdog=watchdog,
        figures=mirror.figures,
        evaluate_every=run.recipe.eval.every,
        utilisation=build_utilisation(run),
        stragglers=None
        if factor is None
        else StragglerWatch(factor=factor, every=config.straggler_every, device=run.layout.device),
    )


def _open_log(run: Run, *, quiet: bool) -> "_Log":
    if not run.layout.is_main:
        return _Log(None)
    return _Log(
        MetricsLog(
            run.folder,
            run.recipe.log,
            total_steps=run.total_steps,
            start_step=run.state.step,
            recipe=encode(run.recipe),
            quiet=quiet,
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


def _export(run: Run, evaluator: Any, weights: dict[str, torch.Tensor] | None, log: _Log) -> None:
    """Write export/, adapter/ and the report; `weights` are those of a run with an adapter."""
    for note in run.export(evaluator, weights):
        log.say(note)
    write_report((run.folder,), encoder=run.task.looks(evaluator))


def _leave(run: Run, log: _Log, signals: StopSignals) -> None:
    """End the process of a run that was told to stop; it is saved."""
    name = "a signal to another rank" if signals.received is None else signals.received.name
    log.say(f"stopped by {name} at step {run.state.step}, saved; go on with --resume")
    interrupted = signals.received == signal.SIGINT
    raise SystemExit(int(ExitStatus.INTERRUPTED if interrupted else ExitStatus.STOPPED))


def _forget(_: object) -> None:
    """For a callback whose result nobody wants."""


def _say(line: str) -> None:
    if is_alone() or dist.get_rank() == 0:
        print(f"mmtrain: {line}", file=sys.stderr)
