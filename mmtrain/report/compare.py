"""The page that lays several runs beside each other."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmtrain.files import real_path
from mmtrain.report.chart import MUCH_LONGER, short_number
from mmtrain.report.curves import draw_curves, draw_scores
from mmtrain.report.evaluations import RECALLS, Evaluation, Kind
from mmtrain.report.facts import facts_of, flatten, last_loss, run_length, seen_before, speed
from mmtrain.report.reading import column, parse_recipe
from mmtrain.report.render import interval_text, percent
from mmtrain.report.run_folder import RunFolder

_NOTHING = "–"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table that has a column for every run."""

    name: str
    cells: list[str]
    """One for each run."""
    best: set[int]
    """Runs whose cell is the best of several."""
    intervals: list[str] = field(default_factory=list)
    """One for each run, empty where there is none; none at all where no run has one."""
    differences: list[str] = field(default_factory=list)
    """One for each run, to the first that has a value; empty for that one and where none is."""
    starts_group: bool = False
    """The first line of an evaluation."""
    group: str = ""
    """The evaluation, on its first line."""


def comparison(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """What compare.html shows of two or more runs."""
    names = distinct_names([run.path for run in runs])
    settings, num_equal = _differences([_settings(run) for run in runs])
    facts, _ = _differences([dict(facts_of(run)) for run in runs])
    return {
        "title": f"{len(runs)} runs compared",
        "legend": [(name, run_length(run)) for name, run in zip(names, runs, strict=True)],
        "names": names,
        "notes": [
            f"{name}: {note}"
            for name, run in zip(names, runs, strict=True)
            for note in (*seen_before(run), *run.notes)
        ],
        "summary": _summary(runs),
        "zero_shot": _scores(runs, "zero-shot", {"top1": "top-1", "top5": "top-5"}),
        "probes": _scores(runs, "probe", {"top1": "top-1", "top5": "top-5"}),
        "retrieval": _scores(runs, "retrieval", {key: _recall_name(key) for key in RECALLS}),
        "questions": _scores(runs, "questions", {"accuracy": "accuracy"}),
        "evaluations": [one for run in runs for one in run.evaluations],
        "uneven": _are_uneven(runs),
        "curves": draw_curves(runs, names) + draw_scores(runs, names),
        "settings": settings,
        "num_equal_settings": num_equal,
        "facts": facts,
    }


def _are_uneven(runs: Sequence[RunFolder]) -> bool:
    lasts = [run.metrics[-1]["step"] for run in runs if run.metrics]
    return bool(lasts) and min(lasts) * MUCH_LONGER <= max(lasts)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Their last parts, with as many folders above them as it takes to tell them apart."""
    parts = [real_path(path).parts for path in paths]
    for depth in range(1, max(map(len, parts))):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(real_path(path)) for path in paths]


def _summary(runs: Sequence[RunFolder]) -> list[Row]:
    samples = [dict(enumerate(column(run.metrics, "samples_seen"))) for run in runs]
    seen = [rows[len(rows) - 1][1] if rows else None for rows in samples]
    return [
        _row("Samples seen", seen, lambda value: f"{value:,.0f}"),
        _row("Loss, mean of the last steps", [last_loss(run) for run in runs], "{:.3f}".format),
        _row("Samples/s, median", [speed(run) for run in runs], short_number),
        _row("Bad samples", [len(run.bad_samples) for run in runs], "{:,}".format),
        _row("Steps refused", [len(run.bad_batches) for run in runs], "{:,}".format),
    ]


def _scores(runs: Sequence[RunFolder], kind: Kind, keys: dict[str, str]) -> list[Row]:
    """A group of lines for every evaluation of a kind that any run has."""
    by_name: list[dict[str, Evaluation]] = [
        {one.name: one for one in run.of_kind(kind)} for run in runs
    ]
    rows: list[Row] = []
    for name in sorted({name for found in by_name for name in found}):
        for number, (key, title) in enumerate(keys.items()):
            values = [found[name].result[key] if name in found else None for found in by_name]
            group = name if number == 0 else ""
            row = _row(title, values, percent, best=max, group=group)
            ends = [found[name].intervals.get(key) if name in found else None for found in by_name]
            intervals = [interval_text(end) if end else "" for end in ends]
            rows.append(replace(row, intervals=intervals, differences=_points(values)))
    return rows


def _points(values: Sequence[float | None]) -> list[str]:
    """How far each share is from the first that is known, in percentage points."""
    found: list[str] = []
    first = None
    for value in values:
        if value is None or first is None:
            found.append("")
        else:
            found.append(f"{100 * (value - first):+.1f}")
        first = value if first is None else first
    return found


def _recall_name(key: str) -> str:
    way, _, k = key.partition("_recall@")
    return f"{'image to text' if way == 'i2t' else 'text to image'} R@{k}"


def _row(
    name: str,
    values: Sequence[float | None],
    show: Callable[[float], str],
    *,
    best: Callable[[Iterable[float]], float] | None = None,
    group: str = "",
) -> Row:
    known = [value for value in values if value is not None]
    chosen = best(known) if best is not None and len(set(known)) > 1 else None
    return Row(
        name=name,
        cells=[_NOTHING if value is None else show(value) for value in values],
        best={
            number for number, value in enumerate(values) if chosen is not None and value == chosen
        },
        starts_group=bool(group),
        group=group,
    )


def _settings(run: RunFolder) -> dict[str, str]:
    """The recipe's keys with their values; none of a recipe that cannot be read."""
    return dict(flatten(parse_recipe(run.recipe), between="."))


def _differences(columns: Sequence[dict[str, str]]) -> tuple[list[Row], int]:
    """The keys whose values are not the same in all, and how many keys are."""
    keys = list({key: None for column in columns for key in column})
    rows = [
        Row(name=key, cells=[column.get(key, _NOTHING) for column in columns], best=set())
        for key in keys
        if len({column.get(key) for column in columns}) > 1
    ]
    return rows, len(keys) - len(rows)
