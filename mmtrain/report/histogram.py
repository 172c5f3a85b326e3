"""Bars as inline SVG: how often a value is within each of some bounds, or how often each name."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup, escape

from mmtrain.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, nice_ticks, short_number

_NUM_BINS = 36
_TAIL = 99.5
"""Percent; what is beyond counts in the outermost bars, so that one value flattens no drawing."""
_GAP = 1.0
_MAX_TICKS = 7
_NAME_WIDTH, _ROW = 104, 21
_LETTER, _LONGEST_NAME = 6.0, 28
"""Width of a letter, at most nearly; letters of a name that are shown."""


def histogram(
    values: np.ndarray,
    *,
    label: str,
    log: bool = False,
    whole: bool = False,
    show: Callable[[float], str] = short_number,
) -> Markup:
    """A bar for each of about 36 equal spans of the values; hovering tells them.

    Args:
        values: at least one.
        label: names the drawing for screen readers.
        log: spans are equal in their ratio; all values are above 0.
        whole: values are whole numbers, and so are the bounds.
        show: writes a value.
    """
    edges = _edges(values, log=log, whole=whole)
    counts = np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
    y_ticks = nice_ticks(0.0, float(counts.max()), count=3)
    place = _Place(edges, log=log)
    bars = [
        _bar(
            place(edges[number]),
            place(edges[number + 1]),
            int(counts[number]),
            y_ticks[-1],
            _span(edges, number, whole, show),
        )
        for number in range(counts.size)
    ]
    return Markup(
        "".join(
            [
                f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
                *(_y_tick(value, y_ticks[-1]) for value in y_ticks),
                *bars,
                f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" '
                f'y2="{HEIGHT - BOTTOM}"/>',
                *(
                    _x_tick(show(value), place(value))
                    for value in _x_ticks(edges, log=log, whole=whole)
                ),
                "</svg>",
            ]
        )
    )


class _Place:
    """Where a value stands on the axis."""

    def __init__(self, edges: np.ndarray, *, log: bool) -> None:
        self._along = math.log if log else float
        self._low, self._high = self._along(edges[0]), self._along(edges[-1])

    def __call__(self, value: float) -> float:
        share = (self._along(value) - self._low) / (self._high - self._low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)


def name_bars(counts: Sequence[tuple[str, int]], *, label: str) -> Markup:
    """A bar for each name, from left to right, with its count.

    Args:
        counts: names and how often each is there; at least one.
        label: names the drawing for screen readers.
    """
    most = max(count for _, count in counts)
    total = sum(count for _, count in counts)
    shown = {name: _shortened(name) for name, _ in counts}
    left = max(_NAME_WIDTH, 8 + round(_LETTER * max(map(len, shown.values()))))
    room = WIDTH - left - 92
    rows = []
    for number, (name, count) in enumerate(counts):
        y, width = number * _ROW + 4, max(1.0, room * count / most)
        told = f"{count:,} ({100 * count / total:.3g} %)"
        rows.append(
            f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(shown[name])}'
            f"<title>{escape(name)}</title></text>"
            f'<rect class="bar" x="{left}" y="{y}" width="{width:.1f}" height="{_ROW - 7}" '
            f'rx="2"/><text x="{left + width + 6:.1f}" y="{y + 11}">{told}</text>'
        )
    height = len(counts) * _ROW + 8
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(rows) + "</svg>")


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1].rstrip()}…"


def _edges(values: np.ndarray, *, log: bool, whole: bool) -> np.ndarray:
    """Bounds of the bars, rising."""
    low, high = np.percentile(values, [100 - _TAIL, _TAIL]).tolist()
    if whole:
        first, last = int(low), int(high) + 1
        width = max(1, -(-(last - first) // _NUM_BINS))
        return np.arange(first, last + width, width) - 0.5
    if high <= low:
        spread = abs(low) * 0.05 or 0.5
        low, high = low - spread, high + spread
    return np.geomspace(low, high, _NUM_BINS + 1) if log else np.linspace(low, high, _NUM_BINS + 1)


def _x_ticks(edges: np.ndarray, *, log: bool, whole: bool) -> list[float]:
    """About five round numbers."""
    low, high = float(edges[0]), float(edges[-1])
    if not log or high < 4 * low:
        return nice_ticks(low, high, count=8, inside=True, least=1.0 if whole else 0.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _MAX_TICKS:
            break
    return ticks


def _span(edges: np.ndarray, number: int, whole: bool, show: Callable[[float], str]) -> str:
    low, high = float(edges[number]), float(edges[number + 1])
    if not whole:
        return f"{show(low)} to {show(high)}"
    first, last = low + 0.5, high - 0.5
    return show(first) if first == last else f"{show(first)} to {show(last)}"


def _y_tick(value: float, top: float) -> str:
    y = _y(value, top)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{short_number(value)}</text>'
    )


def _x_tick(text: str, x: float) -> str:
    anchor = "end" if x > WIDTH - 2 * RIGHT else "middle"
    x = WIDTH - 1 if anchor == "end" else x
    return (
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _bar(start: float, end: float, count: int, top: float, told: str) -> str:
    y = _y(count, top)
    height = HEIGHT - BOTTOM - y
    if count:
        y, height = min(y, HEIGHT - BOTTOM - 1.0), max(height, 1.0)  # one of a million is seen too
    return (
        f'<rect class="bar" x="{start + _GAP / 2:.1f}" y="{y:.1f}" '
        f'width="{max(end - start - _GAP, 0.5):.1f}" height="{height:.1f}"/>'
        f'<rect class="band" x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" '
        f'height="{HEIGHT - TOP - BOTTOM}"><title>{escape(told)}: {count:,}</title></rect>'
    )


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)
