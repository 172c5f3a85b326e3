"""Line charts as inline SVG, drawn by hand: about 4 KB each, where a plotting library writes 30.

Colours come from the page's CSS variables, so one drawing serves light and dark.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 26
MAX_POINTS = 400
MAX_BANDS = 60

Point = tuple[float, float]


def line_chart(
    points: Sequence[Point],
    *,
    label: str,
    from_zero: bool = False,
    smooth: bool = False,
    show: Callable[[float], str] | None = None,
) -> Markup:
    """One series over the steps; hovering tells the values.

    Args:
        points: (step, value) with rising steps, all finite and at least one.
        label: names the drawing for screen readers.
        from_zero: the value axis starts at 0.
        smooth: a running mean drawn over the points, which then step back.
        show: writes a value; None: `short_number`.
    """
    show = show or short_number
    points = thin(points, MAX_POINTS)
    low, high = min(y for _, y in points), max(y for _, y in points)
    y_ticks = nice_ticks(min(low, 0.0) if from_zero else low, high, count=4)
    # Steps are whole numbers, and so are their ticks.
    x_ticks = nice_ticks(points[0][0], points[-1][0], count=5, inside=True, least=1.0)
    x_of = _scale(points[0][0], points[-1][0], LEFT, WIDTH - RIGHT)
    y_of = _scale(min(low, y_ticks[0]), max(high, y_ticks[-1]), HEIGHT - BOTTOM, TOP)
    placed = [(x_of(x), y_of(y)) for x, y in points]

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        *(_y_tick(show(value), y_of(value)) for value in y_ticks),
        *(_x_tick(value, x_of(value)) for value in x_ticks),
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" '
        f'y2="{HEIGHT - BOTTOM}"/>',
    ]
    if smooth and len(points) > 20:
        means = running_mean([y for _, y in points], reach=len(points) // 20)
        parts.append(_path(placed, "line faint"))
        placed = [(x, y_of(mean)) for (x, _), mean in zip(placed, means, strict=True)]
    parts.append(_path(placed, "line"))
    parts.append(f'<circle class="end" cx="{placed[-1][0]:.1f}" cy="{placed[-1][1]:.1f}" r="3"/>')
    parts += _bands(points, x_of, show)
    return Markup("".join([*parts, "</svg>"]))


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: means over equal runs of them, so that no spike is picked by chance."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(run[-1][0], sum(y for _, y in run) / len(run)) for run in runs]


def running_mean(values: Sequence[float], *, reach: int) -> list[float]:
    """Mean over up to `reach` neighbours on each side.

    Near the start as many on one side as on the other, or a steeply falling loss would seem to
    begin lower than it did.
    """
    sums = [0.0, *accumulate(values)]
    means: list[float] = []
    for number in range(len(values)):
        start = max(0, number - reach)
        stop = min(len(values), number + min(reach, number) + 1)
        means.append((sums[stop] - sums[start]) / (stop - start))
    return means


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


def _path(placed: Sequence[Point], css: str) -> str:
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    return f'<path class="{css}" d="M{steps}"/>'


def _y_tick(text: str, y: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>'
    )


def _x_tick(value: float, x: float) -> str:
    return (
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
        f"{short_number(value)}</text>"
    )


def _bands(
    points: Sequence[Point], x_of: Callable[[float], float], show: Callable[[float], str]
) -> list[str]:
    """Invisible columns that tell their value when the pointer rests on them."""
    told = thin(points, MAX_BANDS)
    middles = [(x_of(a) + x_of(b)) / 2 for (a, _), (b, _) in pairwise(told)]
    edges = pairwise([LEFT, *middles, WIDTH - RIGHT])
    return [
        f'<rect class="band" x="{start:.1f}" y="{TOP}" width="{max(end - start, 0.1):.1f}" '
        f'height="{HEIGHT - TOP - BOTTOM}"><title>step {x:,.0f}: {show(y)}</title></rect>'
        for (x, y), (start, end) in zip(told, edges, strict=True)
    ]
