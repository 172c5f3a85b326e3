"""fp16: the loss scale falls at an overflow on every rank, rises again, and survives a resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmtrain.errors import UsageError
from mmtrain.optim.clip import clip_gradients
from mmtrain.optim.loss_scale import LossScale, LossScaleConfig
from mmtrain.recipe import load_recipe
from mmtrain.train.guard import Guard
from tests.ranks import run_ranks
from tests.train.layout_runs import build, train
from tests.train.test_guard import judged
from tests.train.test_loop import RECIPE
from tests.train.test_loop import train as train_command

CPU = torch.device("cpu")
FP16 = ("--train.precision", "fp16")


def test_halved_by_an_overflow_and_doubled_after_a_window() -> None:
    """The whole life of a scale, also from its state."""
    scale = LossScale(LossScaleConfig(initial=4.0, minimum=1.5, window=2), device=CPU)
    values = []
    for event in "ubuoouou":
        scale.update(skip=torch.tensor(event != "u"), overflow=torch.tensor(event == "o"))
        values.append(scale.value.item())
        twin = LossScale(scale.config, device=CPU)
        twin.load_state_dict(json.loads(json.dumps(scale.state_dict())))
        scale = twin
    assert values == [4, 4, 8, 4, 2, 2, 1.5, 1.5]  # a bad step (b) counts as none
    assert not scale.can_fall and scale.num_overflows == 3 and scale.updates_since == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--train.loss_scale.window", "5"), 'no effect with precision = "fp32"'),
        ((*FP16, "--train.loss_scale.window", "0"), "window = 0 must be at least 1"),
        ((*FP16, "--train.loss_scale.initial", "0.5"), "must be at least minimum = 1.0"),
        ((*FP16, "--train.loss_scale.minimum", "0"), "minimum = 0.0 must be positive"),
    ],
)
def test_settings_that_cannot_be(words: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        load_recipe(Path(RECIPE), list(words))
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("max_norm", [None, 0.5, 100.0])
def test_clipping_takes_the_scale_off(max_norm: float | None) -> None:
    """Norm and gradients are those without a scale."""
    plain, scaled = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    plain.grad = torch.tensor([3.0, 0.0, 4.0])
    scaled.grad = plain.grad * 1024
    norm = clip_gradients([plain], max_norm)
    assert norm == clip_gradients([scaled], max_norm, loss_scale=torch.tensor(1024.0)) == 5
    torch.testing.assert_close(scaled.grad, plain.grad)


def test_an_overflow_is_no_bad_step(tmp_path: Path) -> None:
    """Only gradients that are not finite, and only while the scale can fall."""
    good, bad = torch.tensor(1.0), torch.tensor(torch.inf)
    guard = Guard(tmp_path, max_bad_steps=1, roll_back=True)
    verdict = judged(guard, good, bad, step=0, can_fall=True)
    assert verdict.overflow and not verdict.update and not verdict.roll_back
    assert not (tmp_path / "bad_batches.jsonl").exists()
    for loss, can_overflow in ((bad, True), (good, False)):
        verdict = judged(guard, loss, bad, step=0, can_fall=can_overflow)
        assert verdict.roll_back and not verdict.overflow and not verdict.update


def test_overflows_pass_and_a_resume_goes_on(tmp_path: Path) -> None:
    """A scale that is too large falls until gradients are finite; what is resumed is the same."""
    first, window, run = 2.0**18, 3, tmp_path / "run"
    options = (*FP16, "--train.loss_scale.initial", str(first), "--train.steps", "12")
    options = (*options, "--train.loss_scale.window", str(window))
    options = (*options, "--train.checkpoint_every", "1", "--train.keep_checkpoints", "12")
    whole = train_command(run, *options)
    overflows = [line["grad_norm"] is None for line in whole]
    assert overflows[:2] == [True] * 2 and not all(overflows)
    # What each step was scaled by follows from the steps before it.
    scale = LossScale(LossScaleConfig(initial=first, window=window), device=CPU)
    for line, overflow in zip(whole, overflows, strict=True):
        assert line["loss_scale"] == scale.value and line["loss"] is not None
        scale.update(skip=torch.tensor(overflow), overflow=torch.tensor(overflow))
    assert not (run / "bad_batches.jsonl").exists()
    saved = json.loads((run / "checkpoints/step-00000012/state.json").read_text())
    assert saved["loss_scale"] == scale.state_dict()

    start = overflows.index(False) + 2  # in the middle of a window
    for step in range(start + 1, 13):
        shutil.rmtree(run / f"checkpoints/step-{step:08d}")
    again = train_command(run, *options, "--resume")
    for key in ("loss", "loss_scale"):
        assert [line[key] for line in again] == [line[key] for line in whole]


class Overflowing:
    """An objective whose second step has one gradient on one rank that is not finite."""

    def __init__(self, run: Any) -> None:
        self.state, self.objective, self.num_calls = run.state, run.state.objective, 0
        self.weights: dict[str, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def _held(self) -> dict[str, Tensor]:
        named = self.state.stage_parameters() | self.objective.parameters()
        return {name: _local(value).detach().clone() for name, value in named.items()}

    def step(self, *args: Any, **options: Any) -> Tensor:
        """As the objective's own."""
        loss = self.objective.step(*args, **options)
        self.num_calls += 1
        if self.num_calls == 2:
            self.weights = self._held()
            if not dist.is_initialized() or dist.get_rank() == 0:
                parameters = self.state.stage_parameters().values()
                gradient = _local(next(p.grad for p in parameters if p.grad is not None))
                gradient.view(-1)[0] = torch.inf
        if self.num_calls == 3:
            held = self._held()
            assert all(torch.equal(held[name], self.weights[name]) for name in held)
        return loss


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def run_with_an_overflow(name: str, folder: Path) -> list[float]:
    """Three steps at a layout -> their losses."""
    run = build(
        name,
        folder / name,
        *FP16,
        "--train.loss_scale.initial",
        "1024",
        "--train.microbatches",
        "2",
    )
    run.state.objective = Overflowing(run)  # pyright: ignore[reportAttributeAccessIssue]
    seen = train(run, until=3, save=lambda: None)
    assert run.state.loss_scale is not None
    assert run.state.loss_scale.state_dict() == {
        "value": 512,
        "updates_since": 1,
        "num_overflows": 1,
    }
    assert not (folder / name / "bad_batches.jsonl").exists()
    return [seen.losses[step] for step in (1, 2, 3)]


def overflow_at_ranks(rank: int, folder: str, want: list[float]) -> None:
    """One rank's overflow is everybody's, and the losses are the single process's."""
    for name in ("pp2", "fsdp2", "tp2"):
        got = run_with_an_overflow(name, Path(folder))
        assert got == pytest.approx(want, rel=2e-3), name


@pytest.mark.slow
def test_all_ranks_of_any_layout_agree(tmp_path: Path) -> None:
    """Pipeline stages, shards and tensor-parallel ranks hold different gradients."""
    run_ranks(overflow_at_ranks, 2, str(tmp_path), run_with_an_overflow("one", tmp_path))
