"""A suite over its models: what is done already is taken as it is, what fails is told."""

import glob
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.eval.config import command_of
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.failure import Failure
from mmtrain.eval.together import on_all_ranks
from mmtrain.ranks import on_every_rank, on_rank_0, own_rank
from mmtrain.suite.config import METRICS, SuiteConfig, data_of, named_path
from mmtrain.suite.folder import Found, SuiteFolder
from mmtrain.suite.judged import Judged
from mmtrain.suite.measures import measures
from mmtrain.suite.table import Cell, Column, Row, Table, make_table

_COUNTS = ("num_questions", "num_samples", "num_images")
"""Of what the figures are over; the first that is there."""
Say = Callable[[str], None]
"""Tells a line of how far it is."""


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """An evaluation whose data were looked for."""

    evaluation: Evaluator
    inputs: Any = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""
    failed: str = ""


def run_suite(
    name: str,
    suite: SuiteConfig,
    *,
    folder: SuiteFolder,
    models: Sequence[tuple[Path | str, Callable[[], Judged]]],
    say: Say,
) -> Table:
    """Do what is not done of every evaluation of every model; collective.

    Args:
        name: of the suite.
        suite: what is evaluated.
        folder: where results are, which this process holds.
        models: their paths, and what makes each, one after the other.
        say: tells how far it is.

    Raises:
        UsageError: nothing of the suite's data is there, or the folder cannot be written.
    """
    opened = [_open(one) for one in suite.all]
    if all(one.missing for one in opened):
        raise UsageError(
            f"root = {suite.root} has none of the suite's {len(opened)} data sets, such as "
            f"{opened[0].missing}; name their folder by --root"
        )
    columns: list[Column] = []
    cells: list[list[Cell]] = []
    numbers: dict[str, int] = {}
    for path, make in models:
        judged = make()
        done = [_Done(suite, judged, folder, say).cell(one, numbers) for one in opened]
        size = judged.size()
        column = Column(name=judged.name, path=str(path))
        if size is not None:
            column = replace(column, parameters=size.parameters, gflops=size.gflops)
        columns.append(column)
        cells.append(done)
    rows = [
        _row(one, suite, numbers, tuple(of_model[place] for of_model in cells))
        for place, one in enumerate(opened)
    ]
    rows += [
        Row(name=each, kind="", metric=metric, status="lacking", reason=_lacks(metric))
        for each, metric in suite.lacking.items()
    ]
    return make_table(name, columns=columns, rows=rows, groups=suite.average)


def _lacks(metric: str) -> str:
    return f"it is published with {metric}, which mmtrain does not have"


def _open(one: Evaluator) -> _Opened:
    absent = [path for path in data_of(one) if _is_absent(path)]
    if absent := on_rank_0(lambda: absent):
        return _Opened(evaluation=one, missing=absent[0])
    try:
        inputs = on_every_rank(one.open)
        identity = on_every_rank(lambda: one.identity(inputs))
        return _Opened(evaluation=one, inputs=inputs, identity=identity)
    except Exception as error:  # its line is in the table
        return _Opened(evaluation=one, failed=_failure(error))


def _is_absent(data: str) -> bool:
    """Of a plain path, and of a pattern that finds nothing; an address is for who opens it."""
    _, path = named_path(data)
    if path is None or "{" in path:
        return False
    place = Path(path).expanduser()
    return not place.exists() and not (glob.has_magic(path) and glob.glob(str(place)))


def _failure(error: Exception) -> str:
    failure = Failure.of(error)
    if failure.trace is not None and own_rank() == 0:
        print(failure.trace, file=sys.stderr)
    return failure.error


def _row(one: _Opened, suite: SuiteConfig, numbers: dict[str, int], cells: tuple[Cell, ...]) -> Row:
    evaluation = one.evaluation
    told: dict[str, Any] = {
        "name": evaluation.name,
        "kind": command_of(type(evaluation)),
        "metric": suite.metric_of(evaluation),
    }
    if one.missing:
        return Row(**told, status="missing", reason=f"{one.missing} does not exist")
    if one.failed:
        return Row(**told, status="failed", reason=one.failed)
    return Row(**told, status="judged", num_samples=numbers.get(evaluation.name), cells=cells)


@dataclass(frozen=True)
class _Done:
    """A model's evaluations, done or taken as they were."""

    suite: SuiteConfig
    judged: Judged
    folder: SuiteFolder
    say: Say

    def cell(self, one: _Opened, numbers: dict[str, int]) -> Cell:
        """Of one evaluation; `numbers` gets its samples."""
        if one.missing or one.failed:
            return Cell()
        name, metric = one.evaluation.name, self.suite.metric_of(one.evaluation)
        try:
            found, was_there = self._found(one)
            if metric not in found.metrics:
                raise UsageError(f"the set has no {metric}")
        except Exception as error:  # its line is in the table
            failed = _failure(error)
            self.say(f"{self.judged.name}  {name}: failed: {failed}")
            return Cell(failed=failed)
        numbers[name] = found.num_samples
        told = f"{metric} {found.metrics[metric].value:.2%}"
        self.say(f"{self.judged.name}  {name}: {told}{' (done before)' if was_there else ''}")
        return Cell(measure=found.metrics[metric])

    def _found(self, opened: _Opened) -> tuple[Found, bool]:
        """What the evaluation finds, and whether it was done before."""
        one = opened.evaluation
        asked = self.judged.asked_by(one)
        place, key = self.judged.folder(one), self.judged.key(one, opened.identity)
        held = on_rank_0(lambda: self.folder.read_cell(place, one.name, key))
        if held is not None:
            return held, True
        with on_all_ranks(asked.group, asked.device):
            result = one.run(asked, opened.inputs)
        found = Found(
            num_samples=next(result.figures[key] for key in _COUNTS if key in result.figures),
            metrics=measures(result, METRICS[type(one)]),
        )
        on_rank_0(lambda: self.folder.write_cell(place, one.name, key, result=result, found=found))
        return found, False
