"""What one of two ranks cannot do before the first step ends both, with its line: nobody waits."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from mmtrain import run as run_module
from mmtrain.build import run as build_module
from mmtrain.cli import main
from mmtrain.commands import evaluate as evaluate_module
from mmtrain.data.config import DataConfig
from mmtrain.errors import UsageError
from mmtrain.eval.evaluators.retrieval import RetrievalConfig
from mmtrain.loading import load
from mmtrain.train.watchdog import Watchdog
from tests.ranks import run_ranks
from tests.train.test_evaluations import DATA, train

PLACES: dict[str, tuple[str, int, Any, str]] = {
    "opens the cache": ("train", 1, DataConfig, "open_cache"),
    "opens the data": ("train", 1, build_module, "build_task"),
    "opens the log": ("train", 0, run_module, "MetricsLog"),
    "leaves a heartbeat": ("train", 1, Watchdog, "_write"),
    "opens an evaluation's data": ("eval", 1, RetrievalConfig, "open"),
    "loads a model": ("eval", 0, evaluate_module, "load"),
    "loads what embeds": ("embed", 1, evaluate_module, "load"),
}
"""The command, the rank that fails, what is patched."""


def words_of(command: str, folder: Path, where: str) -> list[str]:
    model, out = str(folder / "run"), folder / where
    if command == "embed":
        return ["embed", "--model", model, "--data", DATA, "--out", str(out)]
    return ["eval", "retrieval", "--model", model, "--data", DATA, "--out", f"{out}.json"]


def check_place(rank: int, folder: Path, where: str) -> None:
    command, failing, holder, name = PLACES[where]
    real = getattr(holder, name)

    def do_or_fail(*args: Any, **options: Any) -> Any:
        if rank == failing:
            raise UsageError("the disk is gone")
        return real(*args, **options)

    setattr(holder, name, do_or_fail)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            if command == "train":
                words = ("--data.workers", "0")
                assert train(folder / where, *words) == 2, where
            else:
                assert main(words_of(command, folder, where)) == 2, where
    finally:
        setattr(holder, name, real)
    dist.barrier()
    lines = told.getvalue().splitlines()
    assert lines[-1].endswith("error: the disk is gone"), (where, lines)
    assert (rank == 0) == lines[-1].startswith("mmtrain: error:"), (where, lines)


def check_all(rank: int, folder: str) -> None:
    # The process group is the test's.
    dist.destroy_process_group = lambda *_: None
    assert train(Path(folder) / "run", "--train.steps", "1") == 0
    load(Path(folder) / "run")
    for where in PLACES:
        check_place(rank, Path(folder), where)


@pytest.mark.slow
def test_a_start_that_fails_on_one_rank_fails_on_all(tmp_path: Path) -> None:
    run_ranks(check_all, 2, str(tmp_path))
