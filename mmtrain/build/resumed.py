"""A run goes on from its newest checkpoint, if the recipe allows it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmtrain.build.phases import told_changes
from mmtrain.build.run import Run
from mmtrain.data.config import DataConfig
from mmtrain.data.streamed import StreamedData
from mmtrain.errors import UsageError
from mmtrain.ranks import on_rank_0
from mmtrain.recipe import TrainRecipe
from mmtrain.settings.decode import decode
from mmtrain.settings.paths import expand_paths
from mmtrain.settings.read_toml import read_toml
from mmtrain.train.config import total_steps
from mmtrain.train.resume import (
    accepted_at,
    check_changes,
    find_changes,
    read_history,
    write_history,
)
from mmtrain.train.resume_keys import STARTS
from mmtrain.train.run_folder import RECIPE_FILE, drop_leftovers, logged_steps


def resume_run(run: Run, *, with_changes: bool, begun: bool, say: Callable[[str], None]) -> Run:
    """Go on from the newest checkpoint, or begin where there is none, if the recipe allows it.

    Args:
        run: as its recipe composes it.
        with_changes: what changes the meaning of a step is taken, and told.
        begun: its weights were left to a checkpoint.
        say: prints a line, on rank 0.

    Raises:
        UsageError: the recipe is another than the checkpoint's, or no checkpoint can be read.
    """
    history, changes = read_history(run.folder), []

    def check(path: Path, state: Mapping[str, Any]) -> None:
        nonlocal run
        run = _with_mixture_behind(run, state)
        batches = run.data.batches_per_epoch
        found = find_changes(state["recipe"], run.recipe, batches_per_epoch=batches)
        changes.extend(
            told_changes(
                found,
                run.recipe,
                data=run.data,
                saved=state["recipe"],
                step=state["step"],
                path=path,
            )
        )
        accepted = accepted_at(history, state["step"])
        check_changes(changes, path, wanted=with_changes, accepted=accepted)

    path = run.state.resume(run.folder, warn=say, check=check)
    if path is None:
        assert not begun, "the weights were left to a checkpoint"
        logged = on_rank_0(lambda: logged_steps(run.folder))
        if logged and (recipe := run.folder / RECIPE_FILE).exists():
            check(recipe, {"recipe": expand_paths(TrainRecipe, read_toml(recipe)), "step": 0})
        again = f"; its {logged[-1]} steps are done again" if logged else ""
        say(f"{run.folder} has no checkpoint yet: starting at step 0{again}")
        drop_leftovers(run.folder)
    else:
        say(f"resuming from {path}")
        if isinstance(run.data, StreamedData):
            for line in run.data.take_up(run.state.stream):
                say(line)
    if run.state.step > run.total_steps:
        raise UsageError(
            f"{path} is of step {run.state.step}, beyond the {run.total_steps} steps of this "
            "recipe; raise train.steps or train.epochs"
        )
    for change in changes:
        held = path is not None and change.key in STARTS
        since = "the weights stay the checkpoint's" if held else f"from step {run.state.step} on"
        say(f"{change} ({since})")
    on_rank_0(lambda: write_history(run.folder, changes, step=run.state.step))
    return run


def _with_mixture_behind(run: Run, state: Mapping[str, Any]) -> Run:
    """The run whose mixture was, in the steps behind, that of a checkpoint."""
    saved = state["recipe"]["data"]
    names = [one["name"] for one in saved.get("mixture", ())]
    if not names or names != [source.name for source in run.recipe.data.mixture]:
        return run
    data = run.data.go_on(decode(DataConfig, saved, path="data"), step=state["step"])
    recipe = replace(run.recipe, data=data)
    steps = total_steps(recipe.train, run.data)
    return replace(run, recipe=recipe, total_steps=steps)
