"""Updates that are not finite are refused on every rank; signals ask all of them to stop."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.train.flags import StepFlags, Wishes, own_flags
from mmtrain.train.guard import Guard, StopSignals, TrainingStopped, Verdict
from tests.ranks import run_ranks

GOOD = torch.tensor(1.5)


def judged(
    guard: Guard,
    loss: Tensor,
    norm: Tensor,
    *,
    step: int,
    keys: tuple[str, ...] = (),
    can_fall: bool | None = None,
    save: bool = False,
) -> Verdict:
    """What all ranks do after a step, as the loop asks; the device holds back what is bad."""
    flags = StepFlags(
        loss=loss,
        grad_norm=norm,
        wishes=Wishes(stop=guard.told_to_stop, save=save),
        can_fall=None if can_fall is None else torch.tensor(can_fall),
    )
    verdict = guard.judge(flags.read(), loss=loss, grad_norm=norm, step=step, keys=keys)
    assert flags.skip.item() == (not verdict.update)
    assert flags.overflow.item() == verdict.overflow
    return verdict


@pytest.mark.parametrize(
    ("loss", "norm"), [(torch.nan, 1.0), (torch.inf, 1.0), (1.0, torch.nan), (1.0, torch.inf)]
)
def test_not_finite_is_refused_and_named(tmp_path: Path, loss: float, norm: float) -> None:
    """NaN and Inf, in the loss and in the gradient; the keys are in the file."""
    guard = Guard(tmp_path, max_bad_steps=2)
    assert guard.is_patient
    verdict = judged(guard, torch.tensor(loss), torch.tensor(norm), step=4, keys=("a", "b"))
    assert not guard.is_patient
    assert not verdict.update and not verdict.stop
    row = json.loads((tmp_path / "bad_batches.jsonl").read_text())
    assert row["step"] == 4 and row["keys"] == ["a", "b"]
    with pytest.raises(TrainingStopped, match=r"2 steps in a row .*step 5"):
        judged(guard, torch.tensor(loss), torch.tensor(norm), step=5, keys=("c",))


def test_a_good_step_between_starts_the_count_again(tmp_path: Path) -> None:
    """In a row means in a row."""
    guard, bad = Guard(tmp_path, max_bad_steps=2), torch.tensor(torch.nan)
    for step in range(6):
        verdict = judged(guard, bad if step % 2 else GOOD, GOOD, step=step)
        assert verdict.update == (step % 2 == 0)


def test_signals_ask_for_a_stop(tmp_path: Path) -> None:
    """SIGTERM, SIGUSR1 and a first ctrl-C set the flag; a second ctrl-C interrupts."""
    for number in StopSignals.SIGNALS:
        before = signal.getsignal(number)
        with StopSignals() as signals:
            guard = Guard(tmp_path, signals=signals)
            assert not judged(guard, GOOD, GOOD, step=0).stop
            os.kill(os.getpid(), number)
            verdict = judged(guard, GOOD, GOOD, step=1)
            assert verdict.stop and verdict.update and signals.received == number
            if number == signal.SIGINT:
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
        assert signal.getsignal(number) == before


def test_limit_must_be_positive(tmp_path: Path) -> None:
    """A limit of none would never end."""
    with pytest.raises(UsageError, match="max_bad_steps = 0"):
        Guard(tmp_path, max_bad_steps=0)


def agree(rank: int, folder: str) -> None:
    """What one rank sees counts for both."""
    signals = StopSignals()
    guard = Guard(Path(folder), max_bad_steps=3, signals=signals)
    loss = torch.tensor(torch.nan) if rank == 1 else GOOD
    assert not judged(guard, loss, GOOD, step=0, keys=(f"key {rank}",)).update
    verdict = judged(guard, GOOD, GOOD, step=1, save=rank == 1)
    assert verdict.update and verdict.save and not verdict.stop
    if rank == 1:
        signals.received = signal.SIGTERM
    assert judged(guard, GOOD, GOOD, step=2).stop
    for bad, save in ((True, False), (False, True)):
        loss = torch.tensor(torch.nan) if bad and rank == 1 else GOOD
        wishes = Wishes(save=save and rank == 0)
        own = own_flags(loss=loss, wishes=wishes)
        dist.all_reduce(own.values_N)
        own.is_summed = True
        flags = StepFlags(loss=loss, grad_norm=GOOD, wishes=wishes, own=own)
        said = flags.read()
        assert (flags.skip.item(), said.bad_loss, said.wishes.save) == (bad, bad, save)
        assert not said.bad_norm and not said.wishes.stop


def test_ranks_agree(tmp_path: Path) -> None:
    """One rank's NaN, clock or signal is everybody's; the file names both ranks' samples."""
    run_ranks(agree, 2, str(tmp_path))
    (line,) = (tmp_path / "bad_batches.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "step": 0,
        "loss": "nan",
        "grad_norm": 1.5,
        "keys": ["key 0", "key 1"],
    }
