"""What made a step of a run what it was: lines for a terminal, and a page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmtrain.data.labels import LabelledRow
from mmtrain.report.chart import short_number
from mmtrain.report.labels_page import shown_row
from mmtrain.report.render import render, write_page
from mmtrain.settings.counted import counted

_TEXT = 60
"""Characters of a sample's text in a line."""


@dataclass(frozen=True, kw_only=True)
class Usual:
    """A number, and what it was in the steps before."""

    value: float
    usual: float | None
    """The median of those; None: there is none."""

    @property
    def times(self) -> float | None:
        """How many times what is usual."""
        return None if not self.usual else self.value / self.usual

    @property
    def told(self) -> str:
        """Both."""
        if self.times is None:
            return short_number(self.value)
        return f"{short_number(self.value)}, {self.times:.3g} times what is usual"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A row of the batch."""

    row: LabelledRow
    part: float
    """Of the loss, to which all rows' add up."""


@dataclass(frozen=True, kw_only=True)
class Why:
    """A step, and the steps before it."""

    step: int
    start: str
    """Which run's, and what it was reached from."""
    notes: Sequence[str]
    """Why its last bits may differ."""
    num_before: int
    """Steps before that tell what is usual."""
    loss: Usual
    norm: Usual
    """Of the gradient, before clipping."""
    layers: Mapping[str, Usual]
    """Likewise, of each layer, in the order of the model."""
    samples: Sequence[Sample]
    images_NCHW: Tensor
    """The batch's, uint8."""
    bad: Sequence[str]
    """Samples that were replaced."""

    @property
    def by_part(self) -> list[tuple[Sample, float]]:
        """The samples, and how many times the mean each lost; the largest first."""
        mean = sum(sample.part for sample in self.samples) / max(1, len(self.samples))
        found = [(sample, sample.part / mean if mean else math.nan) for sample in self.samples]
        return sorted(found, key=lambda one: -one[0].part if math.isfinite(one[0].part) else -1e300)

    @property
    def by_times(self) -> list[tuple[str, Usual]]:
        """The layers; those that are least as usual first, where that is known."""
        return sorted(self.layers.items(), key=lambda one: -(one[1].times or 0.0))

    def told(self, num_rows: int) -> Iterator[str]:
        """Lines for a terminal, of so many rows."""
        yield self.start
        for note in self.notes:
            yield f"  {note}"
        yield f"step {self.step:,}: loss {self.loss.told}; gradient norm {self.norm.told}"
        yield f"{'gradient norm of':40} {'':>10} {'usual':>10} {'times':>8}"
        for name, norm in self.by_times:
            usual = "" if norm.usual is None else short_number(norm.usual)
            times = "" if norm.times is None else f"{norm.times:.3g}"
            yield f"{name:40} {short_number(norm.value):>10} {usual:>10} {times:>8}"
        yield f"{counted(len(self.samples), 'row')}, by what each loses in means of the batch:"
        for sample, times in self.by_part[:num_rows]:
            text = " ".join("".join(one.text for one in sample.row.stretches).split())
            cut = text if len(text) <= _TEXT else f"{text[:_TEXT]}..."
            yield f"{times:8.2f}  {sample.row.key}  {cut}"
        for line in self.bad:
            yield f"replaced: {line}"


def write_why_page(path: Path, why: Why, *, title: str, num_rows: int) -> None:
    """Draw it.

    Args:
        path: FILE.html.
        why: what is drawn.
        title: above it.
        num_rows: samples that are shown.

    Raises:
        UsageError: it cannot be written.
    """
    most = max((norm.times or 0.0 for norm in why.layers.values()), default=0.0)
    content = {
        "title": title,
        "notes": list(why.notes),
        "subtitle": why.start,
        "tiles": [
            ("Loss", f"{why.loss.value:.4g}", _remark(why.loss)),
            ("Gradient norm", short_number(why.norm.value), _remark(why.norm)),
            ("Rows", f"{len(why.samples):,}", "that count in the batch"),
        ],
        "num_before": why.num_before,
        "layers": [_layer(name, norm, most) for name, norm in why.by_times],
        "rows": [
            shown_row(sample.row, why.images_NCHW) | {"note": f"{times:.2f} times the mean"}
            for sample, times in why.by_part[:num_rows]
        ],
        "num_more": max(0, len(why.samples) - num_rows),
        "bad": why.bad,
    }
    write_page(path, render("why.html", content))


def _remark(figure: Usual) -> str:
    if figure.times is None:
        return "nothing to compare with"
    return f"{figure.times:.3g} times what is usual"


def _layer(name: str, norm: Usual, most: float) -> dict[str, Any]:
    times = norm.times
    return {
        "name": name,
        "norm": short_number(norm.value),
        "usual": "" if norm.usual is None else short_number(norm.usual),
        "times": "" if times is None else f"{times:.3g}",
        "width": 0.0 if times is None or not most else round(100 * times / most, 2),
    }
