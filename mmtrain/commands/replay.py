"""`mmtrain replay`: steps of a run taken again, and their numbers held against those it logged."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmtrain.build.again import Again, again, stretches
from mmtrain.commands.outputs import refuse_out
from mmtrain.errors import FaultsFound, UsageError
from mmtrain.files import replace_file
from mmtrain.parallel.mesh import leave_ranks
from mmtrain.parallel.precision import Precision
from mmtrain.ranks import num_ranks, on_rank_0, own_rank
from mmtrain.train.metrics import METRICS_FILE, read_metrics
from mmtrain.train.state import environment

TOLERANCES: Mapping[Precision, float] = {"fp64": 1e-9, "fp32": 1e-5}
"""Of loss and gradient norm, relative, where sums were taken in another order."""
_TOLERANCE_16 = 1e-2
"""Of formats that have 8 or 11 bits."""
_FIGURES = ("loss", "grad_norm", "lr")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of a step, as it was logged and as it came again."""

    name: str
    logged: float | None
    """None: not finite."""
    again: float | None

    @property
    def difference(self) -> float:
        """Relative; 0: to the bit."""
        if self.logged is None or self.again is None:
            return 0.0 if self.logged is self.again else math.inf
        if self.logged == self.again:
            return 0.0
        return abs(self.again - self.logged) / max(abs(self.logged), abs(self.again))


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A step that was taken again."""

    step: int
    start: str
    """What it was reached from."""
    figures: tuple[Figure, ...]

    @property
    def difference(self) -> float:
        """The largest of its figures."""
        return max(figure.difference for figure in self.figures)

    def verdict(self, tolerance: float) -> str:
        """equal, within TOLERANCE or differs."""
        if not self.difference:
            return "equal"
        return f"within {tolerance:g}" if self.difference <= tolerance else "differs"


def replay_command(
    *,
    run_dir: Path,
    steps: Sequence[int],
    overrides: list[str],
    tolerance: float | None,
    out: Path | None,
) -> None:
    """Take steps of a run again, print and write what they give.

    Raises:
        UsageError: they cannot be taken again.
        FaultsFound: a number is not the logged one.
    """
    if out is not None:
        refuse_out(out, "--out", ".json")
    logged = _logged(run_dir, steps)
    try:
        replayed, proof = _replay(run_dir, logged, overrides=overrides, tolerance=tolerance)
        if own_rank() == 0:
            for line in _told(replayed, proof["tolerance"]):
                print(line)
        if out is not None:
            words = ["mmtrain", "replay", str(run_dir), "--step", *map(str, logged), *overrides]
            proof = {"command": shlex.join(words), **proof}
            on_rank_0(lambda: replace_file(out, json.dumps(proof, indent=2) + "\n"))
    finally:
        leave_ranks()
    differing = [one.step for one in replayed if one.difference > proof["tolerance"]]
    if differing:
        raise FaultsFound(
            f"{len(differing)} of {len(replayed)} steps are not what {run_dir} logged: step "
            f"{', '.join(map(str, differing[:9]))}{' ...' if len(differing) > 9 else ''}"
        )


def _replay(
    run_dir: Path,
    logged: Mapping[int, Mapping[str, Any]],
    *,
    overrides: list[str],
    tolerance: float | None,
) -> tuple[list[Replayed], dict[str, Any]]:
    """The steps, and what a proof tells of them."""
    replayed: list[Replayed] = []
    proof: dict[str, Any] = {}
    for stretch in stretches(run_dir, list(logged)):
        with again(run_dir, stretch, overrides=overrides) as stand:
            precision = stand.run.recipe.train.precision
            if tolerance is None:
                tolerance = TOLERANCES.get(precision, _TOLERANCE_16)
            if own_rank() == 0:
                _say(stand, precision)
            replayed += _take(stand, logged, wanted=stretch.steps)
            proof |= {
                "data": stand.run.data.fingerprint,
                "precision": precision,
                "ranks": num_ranks(),
                "environment": environment(stand.run.layout),
            }
    assert tolerance is not None, "there is a step, see the option"
    steps = [
        asdict(one) | {"difference": one.difference, "verdict": one.verdict(tolerance)}
        for one in replayed
    ]
    return replayed, proof | {"tolerance": tolerance, "steps": steps}


def _take(
    stand: Again, logged: Mapping[int, Mapping[str, Any]], *, wanted: Sequence[int]
) -> Iterator[Replayed]:
    start = "the beginning" if stand.checkpoint is None else stand.checkpoint.name
    for _, step in stand.take(wanted[-1]):
        number = step.number + 1
        if number not in wanted:
            continue
        now = {
            "loss": step.loss.item(),
            "grad_norm": step.grad_norm.item(),
            "lr": stand.run.state.optimizers.lr,
        }
        yield Replayed(
            step=number,
            start=start,
            figures=tuple(
                Figure(
                    name=name,
                    logged=logged[number][name],
                    again=now[name] if math.isfinite(now[name]) else None,
                )
                for name in _FIGURES
            ),
        )


def _say(stand: Again, precision: str) -> None:
    run, ranks = stand.run, num_ranks()
    start = "its beginning" if stand.checkpoint is None else stand.checkpoint
    where = "one process" if ranks == 1 else f"{ranks} ranks"
    print(f"{run.folder}: again from {start} on {where}, {precision}")
    for line in stand.told:
        print(f"  {line}")


def _told(replayed: Sequence[Replayed], tolerance: float) -> Iterator[str]:
    """A table of the steps, and their sum in words."""
    yield f"{'step':>8}  {'loss, logged':>14}  {'again':>14}  {'norm, logged':>14}  {'again':>14}"
    for one in replayed:
        values = (value for figure in one.figures[:2] for value in (figure.logged, figure.again))
        cells = "  ".join("  not finite  " if v is None else f"{v:14.9g}" for v in values)
        verdict = one.verdict(tolerance)
        more = f" ({one.difference:.2g})" if one.difference else ""
        yield f"{one.step:>8}  {cells}  {verdict}{more}"
    equal = sum(not one.difference for one in replayed)
    within = sum(0 < one.difference <= tolerance for one in replayed)
    yield (
        f"{equal + within} of {len(replayed)} steps are those of the run: {equal} to the bit, "
        f"{within} within {tolerance:g}"
    )


def _logged(run_dir: Path, steps: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What the run logged of the steps, rising.

    Raises:
        UsageError: it is no run, or has no line of one of them.
    """
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise UsageError(f"{run_dir} holds no {METRICS_FILE}, so it is no run; name a run's folder")
    lines = {line["step"]: line for line in read_metrics(path)}
    if not lines:
        raise UsageError(f"{path} has no line yet; wait until the run has logged a step")
    for step in steps:
        if step not in lines:
            near = min(lines, key=lambda one: (abs(one - step), one))
            raise UsageError(
                f"--step {step}: {path} has no line of it (train.log_every); the nearest is "
                f"{near}, the last {max(lines)}"
            )
        for name in _FIGURES:
            if not isinstance(lines[step].get(name), float | int | None) or name not in lines[step]:
                raise UsageError(f"{path}: the line of step {step} has no {name}; it was changed")
    return {step: lines[step] for step in sorted(set(steps))}
