"""Which numbers of a run become curves, and how they are written."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmtrain.report.chart import Point, Series, color_class, line_chart, short_number
from mmtrain.report.evaluations import Evaluation
from mmtrain.report.facts import phase_borders, recent
from mmtrain.report.reading import column
from mmtrain.report.reliability import reliability_chart
from mmtrain.report.render import percent
from mmtrain.report.run_folder import RunFolder


def percent_brief(value: float) -> str:
    """A fraction as a percentage in the room of an axis."""
    return f"{100 * value:.3g} %"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How one key of metrics.jsonl is drawn."""

    key: str
    title: str
    unit: str = ""
    from_zero: bool = False
    smooth: bool = False
    peak: bool = False
    """The title shows the highest value, not the last."""
    middle: bool = False
    """The title shows the median of all, as the page's tiles do."""
    show: Callable[[float], str] = short_number


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A curve's card on the page."""

    title: str
    value: str
    """Beside the title: the one figure of it; empty where there are several lines."""
    svg: Markup


CURVES = (
    Curve(key="loss", title="Loss", smooth=True),
    Curve(key="lr", title="Learning rate", from_zero=True, peak=True),
    Curve(key="grad_norm", title="Gradient norm", from_zero=True, smooth=True),
    Curve(key="logit_scale", title="Logit scale"),
    Curve(
        key="samples_per_second",
        title="Speed",
        unit="samples/s",
        from_zero=True,
        smooth=True,
        middle=True,
    ),
    Curve(
        key="mfu",
        title="MFU",
        unit="of the peak",
        from_zero=True,
        smooth=True,
        middle=True,
        show=percent_brief,
    ),
    Curve(
        key="hfu",
        title="HFU",
        unit="of the peak",
        from_zero=True,
        smooth=True,
        middle=True,
        show=percent_brief,
    ),
    Curve(
        key="data_wait_fraction",
        title="Waiting for data",
        unit="of the time",
        from_zero=True,
        smooth=True,
        middle=True,
        show=percent_brief,
    ),
)

_SOURCES_TOLD = 6
"""Names of sources beside a drawing; the pointer tells them all."""

_SOURCE = Markup('<span class="source"><span class="swatch {color}"></span>{name} {value}</span>')

_SCORES = (
    ("zero-shot", "top1", "top-1"),
    ("retrieval", "i2t_recall@1", "image to text R@1"),
    ("questions", "accuracy", "accuracy"),
)


def draw_curves(runs: Sequence[RunFolder], names: Sequence[str]) -> list[Drawing]:
    """A drawing for each key that the metrics of any run have, the runs over each other.

    Args:
        runs: one or several.
        names: what the drawings call them.
    """
    drawings: list[Drawing] = []
    # Of several runs nobody could tell whose border it is.
    borders = phase_borders(runs[0]) if len(runs) == 1 else []
    for curve in CURVES:
        lines = _lines([column(run.metrics, curve.key) for run in runs], names)
        if lines:
            svg = line_chart(
                lines,
                label=curve.title,
                from_zero=curve.from_zero,
                smooth=curve.smooth,
                show=curve.show,
                borders=borders,
            )
            drawings.append(Drawing(title=curve.title, value=_value(curve, lines), svg=svg))
    return drawings


def draw_sources(run: RunFolder) -> list[Drawing]:
    """What each source of a mixture lost and how often it was gone through, a line a source."""
    return [
        *_by_source(run, "source_loss", title="Loss of each source", smooth=True),
        *_by_source(run, "source_epochs", title="Epochs of each source", from_zero=True),
    ]


def _by_source(
    run: RunFolder, key: str, *, title: str, smooth: bool = False, from_zero: bool = False
) -> list[Drawing]:
    tables = [row[key] if isinstance(row.get(key), dict) else {} for row in run.metrics]
    names = {name: None for table in tables for name in table}
    rows = [{"step": r["step"]} | t for r, t in zip(run.metrics, tables, strict=True)]
    columns = {name: column(rows, name) for name in names}
    lines = [
        Series(points=points, name=name, number=number)
        for number, (name, points) in enumerate(columns.items())
        if points
    ]
    if not lines:
        return []
    told = [
        _SOURCE.format(
            color=color_class(line.number),
            name=line.name,
            value=short_number(_newest(line, smooth)),
        )
        for line in lines[:_SOURCES_TOLD]
    ]
    told += [f"and {len(lines) - _SOURCES_TOLD} more"] * (len(lines) > _SOURCES_TOLD)
    svg = line_chart(lines, label=title, from_zero=from_zero, smooth=smooth)
    return [Drawing(title=title, value=Markup(" ").join(told), svg=svg)]


def _newest(line: Series, smooth: bool) -> float:
    values = [y for _, y in line.points]
    return recent(values) if smooth else values[-1]


def draw_scores(runs: Sequence[RunFolder], names: Sequence[str]) -> list[Drawing]:
    """Scores over the steps, of what any run evaluated more than once."""
    drawings: list[Drawing] = []
    for kind, key, what in _SCORES:
        found = {one.name: None for run in runs for one in run.evaluations if one.kind == kind}
        for name in found:
            histories = [
                next((one.history for one in run.evaluations if one.name == name), [])
                for run in runs
            ]
            lines = _lines([column(history, key) for history in histories], names)
            if any(len(line.points) > 1 for line in lines):
                title = f"{name}, {what}"
                svg = line_chart(lines, label=title, from_zero=True, show=percent_brief)
                last = percent(lines[0].points[-1][1]) if len(lines) == 1 else ""
                drawings.append(Drawing(title=title, value=last, svg=svg))
    return drawings


def draw_reliability(evaluations: Sequence[Evaluation]) -> list[Drawing]:
    """How sure each evaluation's predictions were, and how often right; old results tell it not."""
    drawings: list[Drawing] = []
    for one in evaluations:
        bins = [row for row in one.result.get("reliability", ()) if row["count"] > 0]
        calibration = one.result.get("calibration")
        error = calibration.get("expected_error") if isinstance(calibration, dict) else None
        if bins:
            value = f"off by {percent(error)} on average" if isinstance(error, float) else ""
            svg = reliability_chart(bins, label=f"Reliability of {one.name}")
            drawings.append(Drawing(title=one.name, value=value, svg=svg))
    return drawings


def _lines(columns: Sequence[Sequence[Point]], names: Sequence[str]) -> list[Series]:
    """The runs that have the numbers, each in its colour; without names where there is one run."""
    named = names if len(names) > 1 else [""]
    return [
        Series(points=points, name=name, number=number)
        for number, (points, name) in enumerate(zip(columns, named, strict=True))
        if points
    ]


def _value(curve: Curve, lines: Sequence[Series]) -> str:
    if len(lines) > 1:
        return curve.unit
    values = [y for _, y in lines[0].points]
    if curve.peak:
        return f"peak {curve.show(max(values))} {curve.unit}".strip()
    if curve.middle:
        return f"median {curve.show(statistics.median(values))} {curve.unit}".strip()
    value = recent(values) if curve.smooth else values[-1]
    return f"{curve.show(value)} {curve.unit}".strip()
