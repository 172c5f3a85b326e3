"""A run's steps taken again, from its checkpoints; nothing in its folder is changed."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmtrain.build.run import Run, build_run
from mmtrain.checkpoint.checkpoint import read_state
from mmtrain.checkpoint.sealed_folder import CHECKPOINTS, steps_in
from mmtrain.data.batch import SampleBatch
from mmtrain.data.fingerprint import same_data
from mmtrain.data.storage.caches import caching
from mmtrain.data.storage.patience import waiting
from mmtrain.data.streamed import StreamedData
from mmtrain.errors import UsageError
from mmtrain.files import parse_json
from mmtrain.nn.products import fast_products
from mmtrain.parallel.mesh import Layout, ParallelConfig, build_layout, pick_device
from mmtrain.ranks import num_ranks, on_every_rank
from mmtrain.recipe import TrainRecipe, load_recipe
from mmtrain.settings.decode import dump_toml, encode
from mmtrain.settings.paths import escape_path, escape_paths
from mmtrain.train.resume import HISTORY_FILE, find_changes, read_history, show_value
from mmtrain.train.resume_keys import kinds_of
from mmtrain.train.run_folder import FACTS_FILE, RECIPE_FILE
from mmtrain.train.transfer import Transfer
from mmtrain.train.update import Step


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Steps of a run that are taken again from one place on."""

    start: int
    """The step of the newest checkpoint before them; 0: from the run's beginning."""
    steps: tuple[int, ...]
    """Those that are wanted, rising; a step is numbered by the updates done when it is done."""


def stretches(run_dir: Path, steps: Sequence[int]) -> Iterator[Stretch]:
    """The wanted steps, by the checkpoint that each is reached from."""
    kept = [0, *steps_in(run_dir / CHECKPOINTS)]
    by_start: dict[int, list[int]] = {}
    for step in sorted(set(steps)):
        by_start.setdefault(max(one for one in kept if one < step), []).append(step)
    for start, wanted in by_start.items():
        yield Stretch(start=start, steps=tuple(wanted))


@dataclass(frozen=True, kw_only=True)
class Again:
    """A run as it stood before a stretch of its steps."""

    run: Run
    checkpoint: Path | None
    """That it stands at; None: it stands at its beginning."""
    told: tuple[str, ...]
    """Why its last bits may differ from what was recorded."""

    def take(
        self, until: int, *, look: Callable[[SampleBatch], object] = lambda _: None
    ) -> Iterator[tuple[SampleBatch, Step]]:
        """Its steps, each with its batch, up to one.

        Args:
            until: the last.
            look: is called with each batch before its step is taken.

        Raises:
            UsageError: the run went back to older weights there, or has no such step.
        """
        run, transfer, bad_in_a_row = self.run, Transfer(self.run.layout.device), 0
        if until > run.total_steps:
            raise UsageError(f"--step {until} is beyond the run's {run.total_steps} steps")
        batches = run.data.iterate(run.state.step, until)
        try:
            for batch in batches:
                look(batch)
                step = run.take_step(batch, transfer)
                yield batch, step
                said = step.flags.read()
                bad_in_a_row = bad_in_a_row + 1 if said.bad_loss or said.bad_norm else 0
                if bad_in_a_row >= run.recipe.train.max_bad_steps and run.state.step < until:
                    raise UsageError(
                        f"{run.folder}: {bad_in_a_row} steps up to {run.state.step} had no finite "
                        "loss and gradient, and the run went back to older weights there, or "
                        "ended; name a step before them"
                    )
        finally:
            batches.close()


@contextmanager
def again(run_dir: Path, stretch: Stretch, *, overrides: list[str]) -> Iterator[Again]:
    """The run before a stretch of its steps: on one process, or on the ranks that were started.

    Args:
        run_dir: the run's folder.
        stretch: of `stretches`.
        overrides: keys that change how steps are computed, not what they are.

    Raises:
        UsageError: a key changes what the steps are; the recipe was another one within the
            stretch, and it is not known; the data are others; or there is nothing to start from.
    """
    recipe = _recipe_of(run_dir, stretch, overrides)
    layout = build_layout(recipe.parallel, pick_device(recipe.train.device))
    patient = waiting(recipe.data.retry_seconds)
    fast = fast_products(layout.device, tf32=recipe.train.precision == "tf32")
    open_cache = partial(recipe.data.open_cache, world_size=num_ranks())
    cached = caching(on_every_rank(open_cache))
    with patient, fast, cached:
        yield _stand(recipe, layout, run_dir, stretch)


def _stand(recipe: TrainRecipe, layout: Layout, run_dir: Path, stretch: Stretch) -> Again:
    run = build_run(recipe, layout, begun=stretch.start > 0)
    if isinstance(run.data, StreamedData):
        raise UsageError(
            f"{run_dir} read a stream (data.stream = true), whose samples do not come again; only "
            "steps over shards that are indexed can be taken again"
        )
    told: list[str] = []
    checkpoint = run.state.resume(run_dir, until=stretch.start, warn=told.append)
    if run.state.step != stretch.start:
        raise UsageError(
            f"{run_dir}: {told[0] if told else 'the checkpoint is gone'}; name a step that another "
            "checkpoint comes before"
        )
    if checkpoint is None:
        _check_data(run, run_dir)
    return Again(run=run, checkpoint=checkpoint, told=tuple(told))


def _check_data(run: Run, run_dir: Path) -> None:
    """That a run's beginning has the data that its facts name."""
    path = run_dir / FACTS_FILE
    try:
        before = parse_json(path.read_bytes())["data"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} does not say what data the run had, so its first steps cannot be compared; "
            "name a step that a checkpoint comes before"
        ) from error
    if not same_data(str(before), run.data.fingerprint):
        raise UsageError(
            f"data.train is not what {run_dir} trained on ({before}), but {run.data.fingerprint}: "
            "the same steps would see other samples; name by --data.train where its data are now"
        )


def _recipe_of(run_dir: Path, stretch: Stretch, overrides: list[str]) -> TrainRecipe:
    """The recipe that held in a stretch, on the ranks that there are."""
    with tempfile.TemporaryDirectory() as scratch:
        path = run_dir / RECIPE_FILE
        if (saved := _saved_recipe(run_dir, stretch)) is not None:
            path = Path(scratch) / RECIPE_FILE
            path.write_text(dump_toml(escape_paths(TrainRecipe, saved)), encoding="utf-8")
        words = ["--run.dir", escape_path(str(run_dir))]
        load = partial(load_recipe, path, resumes=stretch.start > 0)
        recorded, recipe = load(words), load([*overrides, *words])
    for change in find_changes(encode(recorded), recipe):
        if change.kind != "free":
            raise UsageError(
                f"{change.key} = {show_value(change.now)} would make another step of it than the "
                f"run's, {show_value(change.before)}; only keys that say how it is computed may "
                "change, such as train.microbatches, data.workers or where the data are"
            )
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return recipe
    return replace(recipe, parallel=ParallelConfig(recompute=recipe.parallel.recompute))


def _saved_recipe(run_dir: Path, stretch: Stretch) -> dict[str, Any] | None:
    """What held in a stretch, where that is a checkpoint's and not the run's last recipe; None: it
    is that.

    Raises:
        UsageError: the recipe was changed within it, or what held is not kept.
    """
    first, last = stretch.start, stretch.steps[-1]
    changed = sorted(
        record["step"]
        for record in read_history(run_dir)
        if any(kinds_of(key)[:1] != ["free"] for key in record["changes"])
    )
    if within := [step for step in changed if first < step < last]:
        raise UsageError(
            f"{run_dir} was resumed with changes at step {within[0]} ({HISTORY_FILE}), of which it "
            f"keeps no checkpoint: step {last} cannot be reached from step {first}; name one up to "
            f"{within[0]}"
        )
    behind = [step for step in changed if step >= last]
    if not behind:
        return None
    checkpoints = steps_in(run_dir / CHECKPOINTS)
    holding = [step for step in checkpoints if last <= step <= behind[0]]
    if first > 0 and first not in changed:
        holding.append(first)
    if not holding:
        raise UsageError(
            f"{run_dir} was resumed with changes at step {behind[0]} ({HISTORY_FILE}), and no "
            f"checkpoint keeps the recipe of step {last}; name a step behind {behind[0]}"
        )
    return read_state(checkpoints[holding[0]])["recipe"]
