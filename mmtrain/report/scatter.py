"""Points over sizes, as inline SVG: what is reached against what it costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mmtrain.report.chart import NUM_COLORS, nice_ticks, short_number
from mmtrain.report.render import percent

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 42
_LINE = 13
"""Pixels of a line of text."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model."""

    name: str
    """Beside the dot."""
    x: float
    """Above 0."""
    y: float
    """From 0 to 1."""
    low: float | None = None
    """Of its interval. None: none is drawn."""
    high: float | None = None
    """Its other end."""
    number: int = 0
    """Picks the colour."""


def scatter(points: Sequence[Point], *, label: str, x_label: str) -> Markup:
    """Points over a logarithmic axis, each with its name and interval.

    Args:
        points: at least one.
        label: names the drawing for screen readers.
        x_label: below the axis.
    """
    ends = [end for one in points for end in (one.y, one.low, one.high) if end is not None]
    y_ticks = nice_ticks(min(ends), max(ends), count=4)
    x_ticks = _log_ticks([one.x for one in points])
    low, high = math.log(x_ticks[0]), math.log(x_ticks[-1])

    def x_of(value: float) -> float:
        return LEFT + (math.log(value) - low) / (high - low) * (WIDTH - RIGHT - LEFT)

    def y_of(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    bottom = HEIGHT - BOTTOM
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for value in y_ticks:
        y = y_of(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{100 * value:.4g} %</text>'
        )
    for value in x_ticks:
        x = x_of(value)
        anchor = "middle" if LEFT < x < WIDTH - RIGHT - 20 else "start" if x <= LEFT else "end"
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">'
            f"{short_number(value)}</text>"
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    placed = [(x_of(one.x), y_of(one.y)) for one in points]
    for one, (x, y) in zip(points, placed, strict=True):
        parts.append(_dot(one, x, y, y_of(one.low or one.y), y_of(one.high or one.y)))
    parts += _names(points, placed)
    return Markup("".join([*parts, "</svg>"]))


def _log_ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten that span the values, at least two; of many every few."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    every = [m * 10.0**power for power in range(low, high + 1) for m in (1, 2, 5)]
    first = max(number for number, tick in enumerate(every) if tick <= min(values) * 1.0001)
    last = min(
        [number for number, tick in enumerate(every) if tick >= max(values) * 0.9999],
        default=len(every) - 1,
    )
    ticks = every[first : max(last, first + 1) + 1]
    step = math.ceil((len(ticks) - 1) / 6)
    return ticks if step == 1 else [*ticks[:-1:step], ticks[-1]]


def _dot(one: Point, x: float, y: float, low: float, high: float) -> str:
    whisker = (
        f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        if one.low is not None
        else ""
    )
    told = f"{one.name}: {percent(one.y)}, {short_number(one.x)}"
    return (
        f'<g class="c{one.number % NUM_COLORS}">{whisker}'
        f'<circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(told)}</title>'
        "</circle></g>"
    )


def _names(points: Sequence[Point], placed: Sequence[tuple[float, float]]) -> list[str]:
    """A name beside each dot, on the side that has room, lower where another name is."""
    taken: list[tuple[float, float, float]] = []
    parts: list[str] = []
    for number in sorted(range(len(points)), key=lambda number: placed[number][1]):
        (x, y), name = placed[number], _short(points[number].name)
        width = 6.2 * len(name)
        is_right = x + 10 + width > WIDTH - RIGHT
        start = x - 10 - width if is_right else x + 10
        y += 4
        while any(abs(y - other) < _LINE and start < end and begin < start + width
                  for begin, end, other in taken):  # fmt: skip
            y += 1
        taken.append((start, start + width, y))
        anchor = "end" if is_right else "start"
        parts.append(
            f'<text class="point" x="{x - 10 if is_right else x + 10:.1f}" y="{y:.1f}" '
            f'text-anchor="{anchor}">{escape(name)}</text>'
        )
    return parts


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"…{name[-27:]}"
