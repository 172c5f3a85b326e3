"""Short real runs at any layout: saved by one, loaded by all."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtrain.build.run import Run, build_run
from mmtrain.checkpoint.checkpoint import flatten
from mmtrain.data.batch import ImageTextBatch
from mmtrain.parallel.apply import gather_tensors
from mmtrain.parallel.mesh import ParallelConfig, build_layout
from mmtrain.ranks import gather, own_rank
from mmtrain.recipe import load_recipe
from mmtrain.train.guard import Guard
from mmtrain.train.loop import Loop
from mmtrain.train.watchdog import Watchdog

ROOT = Path(__file__).parents[2]
LAYOUTS = {
    "one": ParallelConfig(),
    "fsdp2": ParallelConfig(dp_shard=2),
    "tp2": ParallelConfig(tp=2),
    "pp2": ParallelConfig(pp=2),
    "ddp2": ParallelConfig(dp_kind="ddp"),
    "zero2": ParallelConfig(dp_kind="zero1"),
    "fsdp4": ParallelConfig(dp_shard=4),
    "tp2pp2": ParallelConfig(tp=2, pp=2),
}
NUM_RANKS = {"one": 1, "fsdp4": 4, "tp2pp2": 4}
NUM_RANKS |= dict.fromkeys(("fsdp2", "tp2", "pp2", "ddp2", "zero2"), 2)
SAVED_STEP, LAST_STEP = 2, 4


def build(name: str, folder: Path, *words: str) -> Run:
    """The debug recipe with averaged weights, patch dropout and stochastic depth, at a layout."""
    data = str(ROOT / "mmtrain/demo/debug/train.tar")
    overrides = ["--run.dir", str(folder), "--data.train", data, "--optim.ema_decay", "0.9"]
    recipe = load_recipe(ROOT / "configs/debug_clip.toml", [*overrides, *words])
    recipe = replace(recipe, parallel=LAYOUTS[name])
    folder.mkdir(parents=True, exist_ok=True)
    return build_run(recipe, build_layout(recipe.parallel, torch.device("cpu")))


@dataclass
class Seen:
    """What a run saw, by step."""

    losses: dict[int, float]
    keys: dict[int, list[str]]
    """Of the global batch, in the order of the data-parallel ranks' rows."""


class RecordedData:
    """The run's data, and the keys that went through."""

    def __init__(self, run: Run, seen: Seen) -> None:
        self.run, self.seen = run, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run.data, name)

    def iterate(self, start: int, end: int) -> Iterator[ImageTextBatch]:
        """As the data's own."""
        for step, batch in enumerate(self.run.data.iterate(start, end), start + 1):
            parts = dict(sorted(gather((self.run.layout.rank("dp"), batch.keys))))
            self.seen.keys[step] = [key for keys in parts.values() for key in keys]
            yield batch


class RecordedLog:
    """In place of a metrics log, on every rank."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def log(self, record: dict[str, float]) -> None:
        """Keep the loss."""
        self.seen.losses[int(record["step"])] = record["loss"]

    def say(self, line: str) -> None:
        """What a run has to tell at its end is not looked at."""


def train(run: Run, *, until: int, save: Any) -> Seen:
    """Drive the real loop from the run's step to `until`; it saves at step 2 and `until`."""
    seen = Seen({}, {})
    config = replace(run.recipe.train, steps=until, checkpoint_every=SAVED_STEP, log_every=1)
    loop = Loop(
        config=config,
        optim=run.recipe.optim,
        state=run.state,
        data=RecordedData(run, seen),  # pyright: ignore[reportArgumentType]
        total_steps=until,
        guard=Guard(run.folder),
        log=RecordedLog(seen),  # pyright: ignore[reportArgumentType]
        save=save,
        background=run.background,
        evaluate=lambda: None,
        roll_back=lambda step: None,
        watchdog=Watchdog(run.folder, seconds=None, rank=own_rank(), world_size=1),
        figures=dict,
    )
    assert loop.run()
    return seen


def whole_tensors(run: Run) -> dict[str, Tensor]:
    """Weights, optimizer state and averages, gathered without the checkpoint's code."""
    whole = gather_tensors(flatten(run.state.tensors()), run.layout)
    if run.layout.zero_group is not None:  # each rank has the state of its own parameters
        whole = {name: value for part in gather(whole) for name, value in part.items()}
    return whole


def save_one(name: str, folder: Path, *words: str) -> None:
    """Train to step 4 and save at step 2 in the background; write down what step 2 was."""
    run = build(name, folder / name, "--train.async_checkpoint", "true", *words)

    def save() -> None:
        if run.state.step != SAVED_STEP:
            return
        run.save()
        whole = whole_tensors(run)
        if own_rank() == 0:
            save_file(whole, folder / name / "whole.safetensors")

    seen = train(run, until=LAST_STEP, save=save)
    if own_rank() == 0:
        later = {"loss": seen.losses[SAVED_STEP + 1], "keys": seen.keys[SAVED_STEP + 1]}
        (folder / name / "later.json").write_text(json.dumps(later))


def load_all(name: str, folder: Path, sources: list[str], *words: str) -> None:
    """Resume at this layout from every source; compare with what was written down there."""
    run = build(name, folder / name, *words)
    for source in sources:
        path = run.state.resume(folder / source, warn=lambda line: None)
        assert path is not None and run.state.step == SAVED_STEP
        assert run.state.samples_seen == SAVED_STEP * run.recipe.train.batch_size
        got, want = whole_tensors(run), load_file(folder / source / "whole.safetensors")
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert torch.equal(got[key], value), f"{source} -> {name}: {key}"
        later = json.loads((folder / source / "later.json").read_text())
        seen = train(run, until=SAVED_STEP + 1, save=lambda: None)
        assert seen.keys[SAVED_STEP + 1] == later["keys"], f"{source} -> {name}"
        loss = seen.losses[SAVED_STEP + 1]
        assert loss == pytest.approx(later["loss"], rel=1e-6), f"{source} -> {name}"


def save_at_ranks(rank: int, names: list[str], folder: str, *words: str) -> None:
    """`save_one` for each, on all ranks."""
    for name in names:
        save_one(name, Path(folder), *words)
        dist.barrier()


def load_at_ranks(
    rank: int, names: list[str], folder: str, sources: dict[str, list[str]], *words: str
) -> None:
    """`load_all` for each, from its sources, on all ranks."""
    for name in names:
        load_all(name, Path(folder), sources[name], *words)
