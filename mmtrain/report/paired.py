"""The page that lays results of evaluations on the same samples against one of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mmtrain.eval.comparison import Comparison, Pair, verdict
from mmtrain.eval.intervals import RESAMPLES
from mmtrain.eval.outcomes import Outcome
from mmtrain.eval.paired import Paired
from mmtrain.report.chart import nice_ticks
from mmtrain.report.compare import distinct_names
from mmtrain.report.render import percent, render, write_page
from mmtrain.settings.counted import counted

MOST_FLIPS = 10
"""Samples that are shown of those that rose, and of those that fell."""


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """A line of a forest plot. Places are percent of the plot's width."""

    label: str
    told: str
    """The two means and what they are over, in words."""
    points: str
    """B - A, in points."""
    interval: str
    """Its interval; empty where nothing tells one."""
    side: str
    """`better`, `worse` or `even`: where the interval is."""
    middle: float
    low: float
    high: float
    group: str = ""
    """Stands above the row."""
    is_whole: bool = False
    """Over all samples."""


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Rows on one axis."""

    rows: list[ForestRow]
    ticks: list[tuple[str, float]]
    """Points, and where they are."""
    zero: float
    """Where no difference is."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A sample that one of the two does better."""

    name: str
    """Of the sample, where nothing was asked."""
    pair: Pair
    uri: str | None
    """Its picture as a data URI; None: there is none."""


def shown_flips(one: Comparison) -> tuple[list[Pair], list[Pair]]:
    """Those that rose and those that fell, as many as the page shows, of an image one while there
    are others."""
    return _spread(one.rose), _spread(one.fell)


def write_comparison(
    path: Path,
    a: Path,
    others: Sequence[Path],
    found: Sequence[Sequence[Comparison]],
    *,
    pictures: Mapping[str, str],
) -> None:
    """Write the page.

    Args:
        path: where to.
        a: the result that the others are compared with.
        others: at least one.
        found: of each, its figures against those of `a`.
        pictures: data URIs of images by A's name; the page may do without.

    Raises:
        UsageError: it cannot be written.
    """
    ours, *theirs = distinct_names([file.with_suffix("") for file in (a, *others)])
    content = {
        "title": f"{theirs[0] if len(theirs) == 1 else f'{len(theirs)} results'} against {ours}",
        "notes": [],
        "legend": [("A", a), *(("B", file) for file in others)],
        "ours": ours,
        "overview": _overview(found, theirs) if len(theirs) > 1 else [],
        "parts": [
            _part(one, ours=ours, theirs=name, pictures=pictures)
            for name, comparisons in zip(theirs, found, strict=True)
            for one in comparisons
        ],
        "resamples": RESAMPLES,
    }
    write_page(path, render("paired.html", content))


def _overview(
    found: Sequence[Sequence[Comparison]], names: Sequence[str]
) -> list[tuple[str, Forest]]:
    """Of each figure all results on one axis."""
    return [
        (
            _readable(of_metric[0].metric),
            _forest(
                [(n, one.whole, "") for n, one in zip(names, of_metric, strict=True)],
                whole=len(names),
            ),
        )
        for of_metric in zip(*found, strict=True)
    ]


def _part(
    one: Comparison, *, ours: str, theirs: str, pictures: Mapping[str, str]
) -> dict[str, Any]:
    rows = [("All", one.whole, "")]
    for name, group in groupby(one.rows, key=lambda row: row.name):
        some = list(group)
        title = _readable(name)
        if one.num_types[name] > len(some):
            title += (
                f": of {one.num_types[name]:,} the {len(some)} that differ most, some of which "
                "would by chance"
            )
        rows += [(row.kind, row.paired, title if row is some[0] else "") for row in some]
    rose, fell = shown_flips(one)
    sides = ((theirs, one.rose, rose), (ours, one.fell, fell))
    return {
        "metric": _readable(one.metric),
        "theirs": theirs,
        "whole": one.whole,
        "verdict": _sentence(verdict(one.whole, a=ours, b=theirs)),
        "points": _points(one.whole.difference),
        "tiles": _tiles(one.whole, ours=ours, theirs=theirs),
        "forest": _forest(rows, whole=1),
        "p_value": None if one.whole.p_value is None else f"{one.whole.p_value:.2g}",
        "flips": [
            (name, len(every), [_flip(pair, pictures) for pair in some])
            for name, every, some in sides
        ],
    }


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text.startswith("no ") else f"{text}."


def _readable(name: str) -> str:
    known = {"i2t_recall@1": "Image to text R@1", "t2i_recall@1": "Text to image R@1"}
    known |= {"top1": "Top-1 accuracy"}
    return known.get(name, name.replace("_", " ").capitalize())


def _counted(paired: Paired) -> str:
    images = counted(paired.num_images, "image")
    return (
        images if paired.num == paired.num_images else f"{counted(paired.num, 'outcome')}, {images}"
    )


def _tiles(whole: Paired, *, ours: str, theirs: str) -> list[tuple[str, str, str]]:
    counted = _counted(whole)
    return [
        (f"A: {ours}", percent(whole.a), counted),
        (f"B: {theirs}", percent(whole.b), counted),
        ("B − A", f"{_points(whole.difference)}", _interval(whole) or "of one image"),
    ]


def _points(difference: float) -> str:
    return f"{round(100 * difference, 2) + 0.0:+.2f}".replace("-", "−")


def _interval(paired: Paired) -> str:
    if paired.interval is None:
        return ""
    low, high = map(_points, paired.interval)
    return f"{low} to {high}"


def _forest(rows: Sequence[tuple[str, Paired, str]], *, whole: int) -> Forest:
    """Of (label, comparison, group); the first `whole` rows are over all samples."""
    ends = [0.0]
    for _, paired, _ in rows:
        ends += [paired.difference, *(paired.interval or ())]
    ticks = nice_ticks(100 * min(ends), 100 * max(ends), count=4)
    span = ticks[-1] - ticks[0]

    def place(points: float) -> float:
        return 100 * (points - ticks[0]) / span

    return Forest(
        rows=[
            _row(label, paired, group, place, is_whole=number < whole)
            for number, (label, paired, group) in enumerate(rows)
        ],
        ticks=[(f"{tick:+g}".replace("-", "−") if tick else "0", place(tick)) for tick in ticks],
        zero=place(0.0),
    )


def _row(
    label: str, paired: Paired, group: str, place: Callable[[float], float], *, is_whole: bool
) -> ForestRow:
    low, high = paired.interval or (paired.difference, paired.difference)
    is_clear = paired.interval is not None and (low > 0 or high < 0)
    told = f"{percent(paired.a)} → {percent(paired.b)}, {_counted(paired)}"
    return ForestRow(
        label=label,
        told=told,
        points=_points(paired.difference),
        interval=_interval(paired),
        side=("better" if low > 0 else "worse") if is_clear else "even",
        middle=place(100 * paired.difference),
        low=place(100 * low),
        high=place(100 * high),
        group=group,
        is_whole=is_whole,
    )


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(pair[0].image, pair)
    alone = {id(pair) for pair in first.values()}
    rest = [pair for pair in pairs if id(pair) not in alone]
    return [*first.values(), *rest][:MOST_FLIPS]


def _flip(pair: Pair, pictures: Mapping[str, str]) -> Flip:
    outcome: Outcome = pair[0]
    return Flip(name=outcome.id, pair=pair, uri=pictures.get(outcome.image))
