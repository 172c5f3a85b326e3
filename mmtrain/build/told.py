"""What a run is, told before its first step: to the user, and in its folder."""

from collections.abc import Iterator
from typing import Any

import torch

from mmtrain.build.resolve import brings_tokenizer
from mmtrain.build.run import Run
from mmtrain.data.fingerprint import split_fingerprint
from mmtrain.data.storage import hub
from mmtrain.files import writing
from mmtrain.loading.hub_models import PINNED
from mmtrain.parallel.compile import compiled_code, is_compiled
from mmtrain.ranks import num_ranks, on_rank_0
from mmtrain.recipe import TrainRecipe
from mmtrain.settings.counted import counted
from mmtrain.settings.decode import encode
from mmtrain.settings.paths import change_models, escape_paths
from mmtrain.train.resume import read_history
from mmtrain.train.run_folder import TOKENIZER, fetched_models, write_facts


def headline(run: Run) -> Iterator[str]:
    """What is about to run, before its first step."""
    config, data = run.recipe.train, run.data
    if sources := _sources(run):
        told = (
            f"{name} ({counted(one['num_samples'], 'sample')})" for name, one in sources.items()
        )
        yield f"mixing {', '.join(told)}"
    for root, commit in hub.COMMITS.items():
        yield f"{root} is read at commit {commit}"
    given = data.phases.are_given
    steps = counted(run.total_steps, "step")
    steps += f" in {counted(len(config.phase), 'phase')}" if given else f" of {config.batch_size:,}"
    if run.recipe.data.stream:
        yield f"a stream, resumed at its shards' borders; {steps}"
    else:
        epochs = run.total_steps / data.batches_per_epoch
        if given:
            epochs = data.phases.sizes.rows_before(run.total_steps) / data.num_samples
        yield f"{counted(data.num_samples, 'sample')}; {steps} ({epochs:,.4g} epochs)"
    yield from data.told()
    if given:
        yield from data.phases.lines()
    if is_compiled(run.state.stages):
        yield (
            f"every block is compiled in the first step; the code is kept in {compiled_code()} for "
            "the next run (TORCHINDUCTOR_CACHE_DIR)"
        )
    part = run.num_trainable / run.num_parameters
    share = "" if part == 1 else f" of {run.num_parameters:,} ({part:.2%})"
    yield f"training {run.num_trainable:,}{share} parameters in {config.precision} on {run.layout}"


def _sources(run: Run) -> dict[str, dict[str, int]]:
    """What each source of a mixture holds; empty without one."""
    if not run.recipe.data.mixture:
        return {}
    pairs = zip(run.recipe.data.mixture, run.data.sources, strict=True)
    return {one.name: {"num_samples": source.num_samples} for one, source in pairs}


def _fetched(run: Run) -> dict[str, str]:
    """What the recipe names of Hugging Face's hub: with its commit, by what the user wrote."""
    named: set[str] = set()

    def note(text: str, _: str) -> str:
        named.add(text)
        return text

    change_models(TrainRecipe, encode(run.recipe), note)
    found = {**fetched_models(run.folder), **PINNED}
    return {text: address for text, address in found.items() if address in named}


def write_run_facts(run: Run) -> None:
    """Write the recipe as it was resolved, and what it met here, into the run's folder."""
    facts: dict[str, Any] = {
        "data": {
            "num_samples": run.data.num_samples,
            "fingerprint": run.data.fingerprint,
            "fingerprint_covers_content": split_fingerprint(run.data.fingerprint)[1] is not None,
            "batches_per_epoch": run.data.batches_per_epoch,
            **({"sources": sources} if (sources := _sources(run)) else {}),
            **({"commits": hub.COMMITS} if hub.COMMITS else {}),
        },
        **({"models": models} if (models := _fetched(run)) else {}),
        "total_steps": run.total_steps,
        **({"phases": run.data.phases.facts()} if run.data.phases.are_given else {}),
        "parameters": {"trainable": run.num_trainable, "total": run.num_parameters},
        "ranks": num_ranks(),
        "device": run.layout.device.type,
        "threads": torch.get_num_threads(),
    }
    changes = {f"at step {one['step']}": one["changes"] for one in read_history(run.folder)}
    if changes:
        facts["changed"] = changes
    recipe = escape_paths(TrainRecipe, encode(run.recipe))
    on_rank_0(lambda: write_facts(run.folder, recipe=recipe, facts=facts))
    if brings_tokenizer(run.recipe):
        with writing(run.folder):
            on_rank_0(lambda: _keep(run))


def _keep(run: Run) -> None:
    """What the run's start brought beside the weights."""
    run.data.tokenizer.save(run.folder / TOKENIZER)
    run.task.keep(run.folder / TOKENIZER)
