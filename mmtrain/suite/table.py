"""The table: evaluations by models, with averages over what all models have."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from mmtrain.files import replace_file
from mmtrain.suite.measures import Measure, mean_of

EVERYTHING = "All"
"""The average over all evaluations."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An evaluation of a model."""

    measure: Measure | None = None
    """What came out. None: it failed, or could not be begun."""
    failed: str = ""
    """Why it failed, in a line."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An evaluation of all models."""

    name: str
    """As the suite has it."""
    kind: str
    """As `mmtrain eval` calls it; empty of a lacking one."""
    metric: str
    """What the cells are."""
    status: Literal["judged", "missing", "failed", "lacking"]
    """Whether there are cells; missing: its data are not on this disk; failed: they cannot be
    opened; lacking: mmtrain has not the metric."""
    reason: str = ""
    """Why there are none, in a line."""
    num_samples: int | None = None
    """Images or questions. None: it is not known."""
    cells: tuple[Cell, ...] = ()
    """A model after the other."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A model."""

    name: str
    """Its path's last parts, as many as tell it from the others."""
    path: str
    """As it was given."""
    parameters: int | None = None
    """Numbers in its weights."""
    gflops: float | None = None
    """Of one image and one text, forward."""
    failed: str = ""
    """Why nothing of it could be judged, in a line."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """A mean over evaluations that all models have."""

    name: str
    """Of the group."""
    over: tuple[str, ...]
    """The evaluations that it is over."""
    left_out: tuple[str, ...]
    """Those of the group that some model has not."""
    means: tuple[Measure | None, ...]
    """A model after the other. None: it has none of them, or there are none."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything."""

    name: str
    """Of the suite."""
    columns: tuple[Column, ...]
    """The models."""
    rows: tuple[Row, ...]
    """The evaluations, a kind after the other."""
    averages: tuple[Average, ...]
    """The one over all first."""

    @property
    def failures(self) -> list[str]:
        """What failed, a line each; what is missing or lacking did not."""
        lines = [f"{one.name}: {one.failed}" for one in self.columns if one.failed]
        for row in self.rows:
            if row.status == "failed":
                lines.append(f"{row.name}: {row.reason}")
            lines += [
                f"{row.name} of {column.name}: {cell.failed}"
                for column, cell in zip(self.columns, row.cells, strict=False)
                if cell.failed and not column.failed
            ]
        return lines


def make_table(
    name: str,
    *,
    columns: Sequence[Column],
    rows: Sequence[Row],
    groups: Mapping[str, Sequence[str]],
) -> Table:
    """The table with its averages.

    Args:
        name: of the suite.
        columns: the models.
        rows: the evaluations.
        groups: names of evaluations by the name of the average over them.
    """
    columns = [_failed(column, number, rows) for number, column in enumerate(columns)]
    everything = [row.name for row in rows]
    named = {EVERYTHING: everything, **groups}
    return Table(
        name=name,
        columns=tuple(columns),
        rows=tuple(rows),
        averages=tuple(
            _average(title, [row for row in rows if row.name in some], columns)
            for title, some in named.items()
        ),
    )


def _failed(column: Column, number: int, rows: Sequence[Row]) -> Column:
    """The column, which failed as a whole where each of its cells has the same line."""
    told = {row.cells[number].failed for row in rows if row.status == "judged"}
    return replace(column, failed=told.pop() if len(told) == 1 else "")


def _average(title: str, rows: Sequence[Row], columns: Sequence[Column]) -> Average:
    """Over the rows that have a figure of every model that has not failed as a whole."""
    counted = [number for number, column in enumerate(columns) if not column.failed]
    whole = [
        row
        for row in rows
        if row.status == "judged"
        and counted
        and all(row.cells[number].measure is not None for number in counted)
    ]
    means: list[Measure | None] = [None] * len(columns)
    for number in counted if whole else ():
        found = [row.cells[number].measure for row in whole]
        means[number] = mean_of([each for each in found if each is not None])
    over = tuple(row.name for row in whole)
    return Average(
        name=title,
        over=over,
        left_out=tuple(row.name for row in rows if row.name not in over),
        means=tuple(means),
    )


def write_table(folder: Path, table: Table) -> None:
    """Write table.json and table.csv; what is computed alike is the same to the byte.

    Raises:
        OSError: one cannot be written.
    """
    text = json.dumps(_plain(table), indent=1, ensure_ascii=False) + "\n"
    replace_file(folder / "table.json", text.encode("utf-8", "replace"))
    replace_file(folder / "table.csv", _csv(table).encode("utf-8", "replace"))


def _plain(table: Table) -> dict[str, object]:
    def numbers(measure: Measure | None) -> dict[str, float | None] | None:
        return None if measure is None else measure._asdict()

    rows = [
        asdict(row)
        | {
            "cells": {
                column.name: {"failed": cell.failed} if cell.failed else numbers(cell.measure)
                for column, cell in zip(table.columns, row.cells, strict=False)
            }
        }
        for row in table.rows
    ]
    averages = [
        asdict(one)
        | {
            "means": {
                column.name: numbers(mean)
                for column, mean in zip(table.columns, one.means, strict=True)
            }
        }
        for one in table.averages
    ]
    models = [asdict(column) for column in table.columns]
    return {"suite": table.name, "models": models, "averages": averages, "evaluations": rows}


_COLUMNS = ("evaluation", "kind", "metric", "num_samples", "model", "parameters", "gflops")
_COLUMNS += ("value", "low", "high", "status", "reason")


def _csv(table: Table) -> str:
    """A line for each evaluation of each model, and for each average of each."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in table.rows:
        told = (row.name, row.kind, row.metric, row.num_samples)
        if row.status != "judged":
            writer.writerow([*told, *[None] * 6, row.status, row.reason])
            continue
        for column, cell in zip(table.columns, row.cells, strict=True):
            numbers = cell.measure or (None, None, None)
            status = "failed" if cell.failed else "judged"
            model = (column.name, column.parameters, column.gflops)
            writer.writerow([*told, *model, *numbers, status, cell.failed])
    for one in table.averages:
        for column, mean in zip(table.columns, one.means, strict=True):
            model = (column.name, column.parameters, column.gflops)
            over = f"over {len(one.over)}: {' '.join(one.over)}"
            numbers = mean or (None, None, None)
            writer.writerow([one.name, "average", "", None, *model, *numbers, "", over])
    return out.getvalue()
