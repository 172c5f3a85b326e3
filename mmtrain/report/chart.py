"""Line charts as inline SVG, drawn by hand: about 4 KB each, where a plotting library writes 30.

Colours come from the page's CSS variables, so one drawing serves light and dark.
"""

import math
import statistics
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
MAX_POINTS = 400
MAX_BANDS = 60
MUCH_LONGER = 4
"""Where one line has so many times the steps of another, their axis is logarithmic: on an even one
the short line would be a sliver."""
NUM_COLORS = 8
"""Colours that page.css defines; more lines than these use them again, dashed."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    points: Sequence[Point]
    """(step, value) with rising steps, all finite and at least one."""
    name: str = ""
    """Told by the pointer where a chart has several lines."""
    number: int = 0
    """Picks the colour."""


def line_chart(
    lines: Sequence[Series],
    *,
    label: str,
    from_zero: bool = False,
    smooth: bool = False,
    show: Callable[[float], str] | None = None,
    borders: Sequence[Point] = (),
) -> Markup:
    """One or several series over the steps; hovering tells the values.

    Args:
        lines: at least one.
        label: names the drawing for screen readers.
        from_zero: the value axis starts at 0.
        smooth: a running median drawn over the points, which then step back; a rare spike among
            them may leave the drawing, so that it does not flatten all else.
        show: writes a value; None: `short_number`.
        borders: (step, number of the phase that begins behind it); those outside are not drawn.
    """
    show = show or short_number
    drawn = [_Drawn(one, smooth=smooth) for one in lines]
    low, high = min(one.low for one in drawn), max(one.high for one in drawn)
    first, last = min(one.steps[0] for one in drawn), max(one.steps[-1] for one in drawn)
    y_ticks = nice_ticks(min(low, 0.0) if from_zero else low, high, count=4)
    lasts = [one.steps[-1] for one in drawn]
    if first >= 1 and min(lasts) * MUCH_LONGER <= max(lasts):
        x_ticks = decades(first, last)
        even = _scale(math.log(first), math.log(last), LEFT, WIDTH - RIGHT)
        x_of = lambda step: even(math.log(step))  # noqa: E731
    else:
        # Steps are whole numbers, and so are their ticks.
        x_ticks = nice_ticks(first, last, count=5, inside=True, least=1.0)
        x_of = _scale(first, last, LEFT, WIDTH - RIGHT)
    y_of = _scale(min(low, y_ticks[0]), max(high, y_ticks[-1]), HEIGHT - BOTTOM, TOP)
    return Markup(
        "".join(
            [
                f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
                *(_y_tick(show(value), y_of(value)) for value in y_ticks),
                *(_x_tick(value, x_of(value)) for value in x_ticks),
                *(_border(phase, x_of(step)) for step, phase in borders if first < step < last),
                f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" '
                f'y2="{HEIGHT - BOTTOM}"/>',
                f'<g opacity="{1 if len(drawn) == 1 else 0.5}">',
                *(one.faint(x_of, y_of) for one in drawn),
                "</g>",
                *(one.line(x_of, y_of) for one in drawn),
                *_bands(drawn, x_of, show),
                "</svg>",
            ]
        )
    )


class _Drawn:
    """A series thinned to what a drawing can show, and its running median."""

    def __init__(self, series: Series, *, smooth: bool) -> None:
        self.name, self.number = series.name, series.number
        points = thin(series.points, MAX_POINTS)
        self.steps, self.values = [x for x, _ in points], [y for _, y in points]
        self.is_smooth = smooth and len(points) > 20
        self.middles = self.values
        if self.is_smooth:
            self.middles = running_median(self.values, reach=len(points) // 20)
        # Of spikes only the 1 % farthest out may leave the drawing.
        rest = sorted(self.values)[len(points) // 100 : len(points) - len(points) // 100]
        self.low = min(*self.middles, rest[0])
        self.high = max(*self.middles, rest[-1])

    def faint(self, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> str:
        """The points themselves, where a median is drawn over them."""
        if not self.is_smooth:
            return ""
        inside = [min(max(value, self.low), self.high) for value in self.values]
        return self._path(inside, "line faint", x_of, y_of)

    def line(self, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> str:
        """The line and a dot where it ends."""
        x, y = x_of(self.steps[-1]), y_of(self.middles[-1])
        dot = f'<circle class="end c{self.number % NUM_COLORS}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        return self._path(self.middles, "line", x_of, y_of) + dot

    def _path(
        self,
        values: Sequence[float],
        css: str,
        x_of: Callable[[float], float],
        y_of: Callable[[float], float],
    ) -> str:
        steps = "L".join(
            f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in zip(self.steps, values, strict=True)
        )
        return f'<path class="{css} {color_class(self.number)}" d="M{steps}"/>'


def color_class(number: int) -> str:
    """What page.css calls the colour of a line."""
    return f"c{number % NUM_COLORS}" + " dashed" * (number >= NUM_COLORS)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: means over equal runs of them, so that chance picks no spike."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(run[-1][0], sum(y for _, y in run) / len(run)) for run in runs]


def running_median(values: Sequence[float], *, reach: int) -> list[float]:
    """Median over up to `reach` neighbours on each side.

    Near the start as many on one side as on the other, or a steeply falling loss would seem to
    begin lower than it did.
    """
    return [
        statistics.median(values[max(0, number - reach) : number + min(reach, number) + 1])
        for number in range(len(values))
    ]


def nice_ticks(
    low: float, high: float, *, count: int, inside: bool = False, least: float = 0.0
) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) that span low to high.

    `inside` leaves out those beyond the ends; `least` is the smallest distance between two.
    """
    if high <= low:
        spread = abs(high) * 0.1 or 1.0
        low, high = (low, high) if inside else (low - spread, high + spread)
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(least, next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    slack = step * 1e-6
    return [t for t in ticks if not inside or low - slack <= t <= high + slack]


def decades(low: float, high: float) -> list[float]:
    """1, 10, 100 ... within two positive ends; where they are fewer than three, also twos and
    fives."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens, all_of_them = ([m * 10.0**p for p in powers for m in ms] for ms in ((1,), (1, 2, 5)))
    found = [[tick for tick in ticks if low <= tick <= high] for ticks in (tens, all_of_them)]
    return found[0] if len(found[0]) > 2 else found[1]


def short_number(value: float) -> str:
    """A number in the room of an axis: 0.25, 1,200, 84k, 2.5e-4."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    if size < 1e-3:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _y_tick(text: str, y: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>'
    )


def _border(phase: float, x: float) -> str:
    return (
        f'<line class="border" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
        f"<title>phase {phase:.0f}</title></line>"
    )


def _x_tick(value: float, x: float) -> str:
    anchor = "end" if x > WIDTH - 2 * RIGHT else "middle"
    x = WIDTH - 1 if anchor == "end" else x
    return (
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">'
        f"{short_number(value)}</text>"
    )


def _bands(
    drawn: Sequence[_Drawn], x_of: Callable[[float], float], show: Callable[[float], str]
) -> list[str]:
    """Invisible columns that tell the values when the pointer rests on them."""
    steps = sorted({step for one in drawn for step in one.steps})
    told = [x for x, _ in thin([(x, 0.0) for x in steps], MAX_BANDS)]
    middles = [(x_of(a) + x_of(b)) / 2 for a, b in pairwise(told)]
    edges = pairwise([LEFT, *middles, WIDTH - RIGHT])
    return [
        f'<rect class="band" x="{start:.1f}" y="{TOP}" width="{max(end - start, 0.1):.1f}" '
        f'height="{HEIGHT - TOP - BOTTOM}"><title>{escape(_told(drawn, x, show))}</title></rect>'
        for x, (start, end) in zip(told, edges, strict=True)
    ]


def _told(drawn: Sequence[_Drawn], step: float, show: Callable[[float], str]) -> str:
    """The values at a step: of each line that goes as far, its nearest."""
    lines: list[str] = []
    for one in drawn:
        place = bisect_left(one.steps, step)
        if place == len(one.steps):
            continue
        if place and step - one.steps[place - 1] < one.steps[place] - step:
            place -= 1
        name = f"{one.name}: " if one.name else ""
        lines.append(name + show(one.middles[place]))
    return (
        f"step {step:,.0f}: {lines[0]}"
        if len(drawn) == 1
        else "\n".join([f"step {step:,.0f}", *lines])
    )
