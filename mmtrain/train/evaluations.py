"""A run's evaluations: done one by one, each result kept, and none at the cost of the training."""

import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtrain.errors import UsageError
from mmtrain.eval import EvalResult, write_result
from mmtrain.eval.failure import Failure, forget_failure, write_failure
from mmtrain.ranks import gather, on_rank_0
from mmtrain.train.metrics import MetricsLog

Evaluation = Callable[[], tuple[EvalResult, tuple[str, ...]]]
"""-> the result, and the figures that say it shortest; collective."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An evaluation that could not be done."""

    name: str
    """Of the recipe."""
    error: str
    """Why, in a line."""
    repeat: str
    """The command that does it again."""


def attempt(
    name: str,
    evaluate: Evaluation,
    *,
    words: Sequence[str],
    run_dir: Path,
    step: int,
    log: MetricsLog | None,
) -> Failed | None:
    """Evaluate into RUN/eval -> what failed, on every rank, or None. Collective.

    Whatever goes wrong, the caller goes on: the training is worth more than its evaluation. Over
    several ranks it is for the evaluation to fail on all of them (eval/together.py); only what
    rank 0 does last of all is asked about here.

    Args:
        name: NAME.json and NAME.failed.json are written, the other one is dropped by neither.
        evaluate: does it.
        words: what `mmtrain` takes to do it again, without the model and the result's place.
        run_dir: the run folder.
        step: updates done.
        log: the main rank's.
    """
    folder, result, keys, failure = run_dir / "eval", None, (), None
    try:
        result, keys = evaluate()
    except Exception as error:  # told below, and at the end of the run by its exit status
        failure = Failure.of(error)
    failures = [one for one in gather(failure) if one is not None]
    failure = next((one for one in failures if one.trace), failures[0] if failures else None)
    if failure is None and result is not None:
        failure = _keep(folder, name, result, step)
    if failure is None:
        assert result is not None, "what did not fail has a result"
        if log is not None:
            figures = "  ".join(f"{key} {result.figures[key]:.2%}" for key in keys)
            log.say(f"step {step}  {name}: {figures}")
        return None
    out = ["--model", str(run_dir), "--out", str(folder / f"{name}.json")]
    repeat = shlex.join(["mmtrain", *words, *out])
    _tell(folder, name, failure, step=step, repeat=repeat, log=log)
    return Failed(name=name, error=failure.error, repeat=repeat)


def _keep(folder: Path, name: str, result: EvalResult, step: int) -> Failure | None:
    def write() -> None:
        write_result(folder / f"{name}.json", result, step=step)
        forget_failure(folder, name)

    try:
        on_rank_0(write)
    except Exception as error:  # told as any other of an evaluation
        return Failure.of(error)
    return None


def _tell(
    folder: Path, name: str, failure: Failure, *, step: int, repeat: str, log: MetricsLog | None
) -> None:
    """In the log, and in a file for the report."""
    if log is None:
        return
    log.say(f"step {step}  evaluation {name} failed, the run goes on: {failure.error}")
    with contextlib.suppress(OSError):  # a full disk: the line is told, and told again at the end
        write_failure(folder, name, failure, step=step, repeat=repeat)
        log.log_failed_evaluation(step, name, failure.error)


def refuse_failed(failed: Sequence[Failed]) -> None:
    """End a run whose last evaluations are not all there; everything else is.

    Raises:
        UsageError: naming them, and how to repeat each.
    """
    if failed:
        told = "; ".join(
            f"evaluation {one.name} failed: {one.error} -- repeat it with: {one.repeat}"
            for one in failed
        )
        raise UsageError(f"the run is complete but for its evaluations: {told}")
