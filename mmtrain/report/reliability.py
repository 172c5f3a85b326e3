"""How sure a model is against how often it is right, as inline SVG."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 300, 250
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 12, 38
_LARGEST = 11.0
"""Radius of a circle that stands for all images."""
_SMALLEST = 2.5
FEW = 10
"""Of fewer images a circle says little, and is drawn faint."""


def reliability_chart(bins: Sequence[dict[str, Any]], *, label: str) -> Markup:
    """A circle for each bin, a line from it to where it should be. Guo et al. 2017,
    arXiv:1706.04599, Fig. 1.

    Args:
        bins: each with a `count`, a mean `confidence` and a `top1`; at least one.
        label: names the drawing for screen readers.
    """
    total = sum(row["count"] for row in bins)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    return Markup(
        "".join(
            [
                f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
                *(_tick(share / 4) for share in range(5)),
                f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
                f'<line class="ideal" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{TOP}"/>',
                f'<text x="{(LEFT + right) / 2:g}" y="{HEIGHT - 6}" text-anchor="middle">'
                "how sure</text>",
                f'<text transform="translate(14 {(TOP + bottom) / 2:g}) rotate(-90)" '
                'text-anchor="middle">how often right</text>',
                *(_circle(row, total) for row in bins),
                "</svg>",
            ]
        )
    )


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _tick(share: float) -> str:
    anchor = "end" if share == 1 else "middle"
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(share):.1f}" '
        f'y2="{_y(share):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{_y(share) + 3.5:.1f}" text-anchor="end">{100 * share:g} %</text>'
        f'<text x="{_x(share) + (RIGHT - 1 if share == 1 else 0):.1f}" y="{HEIGHT - BOTTOM + 15}" '
        f'text-anchor="{anchor}">{100 * share:g} %</text>'
    )


def _circle(row: dict[str, Any], total: int) -> str:
    x, y, ideal = _x(row["confidence"]), _y(row["top1"]), _y(row["confidence"])
    radius = max(_SMALLEST, _LARGEST * math.sqrt(row["count"] / total))
    few = " few" if row["count"] < FEW else ""
    told = (
        f"{row['count']:,} {'image' if row['count'] == 1 else 'images'}\n"
        f"sure: {100 * row['confidence']:.1f} %\n"
        f"right: {100 * row['top1']:.1f} %"
    )
    return (
        f'<line class="gap{few}" x1="{x:.1f}" x2="{x:.1f}" y1="{ideal:.1f}" y2="{y:.1f}"/>'
        f'<circle class="bin{few}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
        f"<title>{escape(told)}</title></circle>"
    )
