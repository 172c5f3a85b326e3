"""Python collects garbage at chosen steps, and a step leaves no tensor to it."""

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain.cli import main
from mmtrain.data.worker_process import begin
from mmtrain.train.garbage import GarbageCollection
from mmtrain.train.loop import Loop

STEPS = 6
RUN = ["train", "configs/debug_clip.toml", "--train.steps", str(STEPS), "--data.workers", "0"]
RUN += ["--train.batch_size", "8", "--train.log_every", "1", "--eval.zero_shot", "[]"]


class Cycle(list[Any]):
    """One that holds itself."""


@contextmanager
def noted() -> Iterator[list[int]]:
    """The generations of what is collected by order, not when Python likes."""
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and not gc.isenabled():
            found.append(info["generation"])

    gc.callbacks.append(note)
    try:
        yield found
    finally:
        gc.callbacks.remove(note)


@pytest.mark.parametrize(
    ("every", "times"),
    [
        ("2", 3),
        pytest.param("4", 1, marks=pytest.mark.slow),
        pytest.param("none", 0, marks=pytest.mark.slow),
    ],
)
def test_a_run_collects_where_it_is_told_to_and_computes_the_same(
    every: str, times: int, tmp_path: Path
) -> None:
    with noted() as generations:
        assert main([*RUN, "--run-dir", str(tmp_path / "run"), "--train.gc_every", every]) == 0
    assert gc.isenabled() and generations == [1] * times
    assert main([*RUN, "--run-dir", str(tmp_path / "default")]) == 0
    losses = [
        [json.loads(line)["loss"] for line in text.splitlines()]
        for text in ((tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "default"))
    ]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


def test_it_is_pythons_again_while_something_else_goes_on_and_afterwards() -> None:
    with pytest.raises(KeyError), GarbageCollection(5) as garbage:
        assert not gc.isenabled()
        with garbage.resting():
            assert gc.isenabled()
        assert not gc.isenabled()
        begin(dict(os.environ), 0)
        assert gc.isenabled(), "a worker that was forked collects by itself"
        raise KeyError
    assert gc.isenabled()
    with GarbageCollection(None) as garbage, garbage.resting():
        assert gc.isenabled()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--parallel.recompute.kind", "full", "--train.microbatches", "2"],
        ["--train.precision", "fp16", "--optim.kind", "muon", "--optim.ema_decay", "0.9"],
    ],
)
def test_a_step_leaves_no_tensor_in_a_cycle(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold memory until the next collection."""
    step, left = Loop._step, []

    def watched(self: Loop, *args: Any, **rest: Any) -> Any:
        if self.state.step == 2:
            gc.collect()
            gc.set_debug(gc.DEBUG_SAVEALL)
            mine = Cycle()  # that looking finds what there is
            mine.append(mine)
        if self.state.step == STEPS - 1:
            gc.collect()
            left.extend(type(one) for one in gc.garbage)
            gc.set_debug(0)
            gc.garbage.clear()
        return step(self, *args, **rest)

    monkeypatch.setattr(Loop, "_step", watched)
    assert main([*RUN, "--run-dir", str(tmp_path / "run"), *words]) == 0
    assert Cycle in left and not [kind for kind in left if issubclass(kind, torch.Tensor)]


@pytest.mark.parametrize("value", ["0", "-3"])
def test_an_interval_that_cannot_be_is_refused(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, "--run-dir", str(tmp_path / "run"), "--train.gc_every", value]) == 2
    assert f"gc_every = {value} must be at least 1" in capsys.readouterr().err
