"""The table as a page: averages, the matrix, what is not in it, and what a model costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from mmtrain.report.chart import short_number
from mmtrain.report.render import percent, render, write_page
from mmtrain.report.scatter import Point, scatter
from mmtrain.suite.measures import Measure
from mmtrain.suite.table import EVERYTHING, Average, Column, Row, Table

_METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_top1": "mean per class",
    "macro_f1": "macro F1",
    "worst_group_top1": "top-1 of the worst group",
    "worst_group_top5": "top-5 of the worst group",
    "jaccard": "Jaccard index",
    "jaccard_5_6": "Jaccard index, 5 or 6 images",
    "jaccard_10_12": "Jaccard index, 10 to 12 images",
    "mean_recall@1": "mean R@1 of both ways",
    **{f"i2t_recall@{k}": f"image to text R@{k}" for k in (1, 5, 10)},
    **{f"t2i_recall@{k}": f"text to image R@{k}" for k in (1, 5, 10)},
}
_HEADINGS = {"knn": "kNN"}
"""Of kinds that are no words."""


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of the matrix, as the macro of tables reads it."""

    name: Markup
    cells: list[Markup | str]
    best: list[int]
    intervals: list[str]
    differences: tuple[str, ...] = ()
    group: str = ""


def write_suite_page(path: Path, table: Table) -> None:
    """Write the page; it needs no network and no script.

    Raises:
        UsageError: it cannot be written.
    """
    judged = [row for row in table.rows if row.status == "judged"]
    absent = [row for row in table.rows if row.status == "missing"]
    content: dict[str, Any] = {
        "title": table.name,
        "notes": table.failures,
        "subtitle": _subtitle(table, len(judged)),
        "tiles": _tiles(table),
        "names": [column.name for column in table.columns],
        "lines": [*_averages(table), *_matrix(judged)],
        "sizes": [_size(column) for column in table.columns],
        "drawings": _drawings(table),
        "averages": table.averages,
        "absent": [
            (row.name, row.reason) for row in table.rows if row.status in ("failed", "lacking")
        ],
        "missing": [row.name for row in absent],
        "looked_for": absent[0].reason.removesuffix(" does not exist") if absent else "",
        "without": [row.name for row in judged if _has_no_interval(row)],
    }
    write_page(path, render("suite.html", content))


def _subtitle(table: Table, num_judged: int) -> str:
    models = f"{len(table.columns)} model{'s' * (len(table.columns) != 1)}"
    return f"{models}, {num_judged} of {len(table.rows)} evaluations of the suite"


def _tiles(table: Table) -> list[tuple[str, str, str]]:
    """The best model by the average over all, and what the average is over."""
    whole = table.averages[0]
    best = _best(whole.means)
    tiles: list[tuple[str, str, str]] = []
    if best and len(table.columns) > 1:
        mean = whole.means[best[0]]
        assert mean is not None, "it is the best"
        names = ", ".join(table.columns[number].name for number in best)
        tiles.append(
            ("Best on average", names, f"{percent(mean.value)}, {_ends(mean)}".removesuffix(", "))
        )
    over = f"{len(whole.over)} of {len(whole.over) + len(whole.left_out)}"
    tiles.append(("Averages are over", over, "evaluations that every model has"))
    absent = sum(row.status == "missing" for row in table.rows)
    if absent:
        tiles.append(("Missing", str(absent), "data sets that are not on this disk"))
    return tiles


def _best(measures: Sequence[Measure | None]) -> list[int]:
    """The numbers of the highest; none of a single one."""
    values = [one.value for one in measures if one is not None]
    if len(values) < 2:
        return []
    top = max(values)
    return [n for n, one in enumerate(measures) if one is not None and one.value == top]


def _ends(measure: Measure | None) -> str:
    if measure is None or measure.low is None or measure.high is None:
        return ""
    return f"{100 * measure.low:.1f} – {100 * measure.high:.1f}"


def _line(name: Markup, measures: Sequence[Measure | None], failed: Sequence[str]) -> _Line:
    cells: list[Markup | str] = []
    for one, why in zip(measures, failed, strict=True):
        if one is not None:
            cells.append(percent(one.value))
        elif why:
            cells.append(Markup(f'<span class="failed" title="{escape(why)}">failed</span>'))
        else:
            cells.append("–")
    return _Line(
        name=name, cells=cells, best=_best(measures), intervals=[_ends(one) for one in measures]
    )


def _grouped(lines: list[_Line], title: str) -> list[_Line]:
    return [
        _Line(
            name=one.name,
            cells=one.cells,
            best=one.best,
            intervals=one.intervals,
            group="" if number else title,
        )
        for number, one in enumerate(lines)
    ]


def _averages(table: Table) -> list[_Line]:
    shown = [one for one in table.averages if one.over]
    none = [""] * len(table.columns)
    lines = [_line(_named(one.name, _counted(one)), one.means, none) for one in shown]
    return _grouped(lines, "Averages")


def _counted(one: Average) -> str:
    return f"{len(one.over)} of {len(one.over) + len(one.left_out)} evaluations"


def _named(name: str, remark: str) -> Markup:
    return Markup(f'{escape(name)}<small class="interval">{escape(remark)}</small>')


def _matrix(rows: Sequence[Row]) -> list[_Line]:
    lines: list[_Line] = []
    for kind in dict.fromkeys(row.kind for row in rows):
        of_kind = [
            _line(
                _named(row.name, _remark(row)),
                [cell.measure for cell in row.cells],
                [cell.failed for cell in row.cells],
            )
            for row in rows
            if row.kind == kind
        ]
        lines += _grouped(of_kind, _HEADINGS.get(kind, kind.replace("-", " ").capitalize()))
    return lines


def _remark(row: Row) -> str:
    metric = _METRICS.get(row.metric, row.metric)
    return metric if row.num_samples is None else f"{metric}, {row.num_samples:,}"


def _size(column: Column) -> tuple[str, str, str, str]:
    parameters = "–" if column.parameters is None else short_number(column.parameters)
    flops = "–" if column.gflops is None else f"{short_number(column.gflops)}"
    return column.name, column.path, parameters, flops


def _has_no_interval(row: Row) -> bool:
    return any(cell.measure is not None and cell.measure.low is None for cell in row.cells)


def _drawings(table: Table) -> list[dict[str, Any]]:
    """The average over all against what a model has and what it takes."""
    whole = table.averages[0]
    assert whole.name == EVERYTHING, "it is the first"
    axes = (
        ("Parameters", "parameters (logarithmic)", [one.parameters for one in table.columns]),
        ("GFLOPs", "GFLOPs of an image and a text (logarithmic)",
         [one.gflops for one in table.columns]),
    )  # fmt: skip
    drawn: list[dict[str, Any]] = []
    for title, x_label, sizes in axes:
        points = [
            Point(name=column.name, x=size, y=mean.value, low=mean.low, high=mean.high, number=n)
            for n, (column, size, mean) in enumerate(
                zip(table.columns, sizes, whole.means, strict=True)
            )
            if size and mean is not None
        ]
        if points:
            label = f"Average against {title}"
            svg = scatter(points, label=label, x_label=x_label)
            drawn.append({"title": label, "value": "", "svg": svg})
    return drawn
