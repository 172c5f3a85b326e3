"""One self-contained HTML page per run."""

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mmtrain import __version__
from mmtrain.files import replace_file
from mmtrain.report.chart import line_chart, short_number
from mmtrain.report.run_folder import Evaluation, RunFolder, column, read_run

NUM_BAD_SAMPLES_SHOWN = 10


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
    show: Callable[[float], str] = short_number


def percent(value: float) -> str:
    """A fraction as a percentage with one digit."""
    return f"{100 * value:.1f} %"


def percent_brief(value: float) -> str:
    """A fraction as a percentage in the room of an axis."""
    return f"{100 * value:.3g} %"


CURVES = (
    Curve(key="loss", title="Loss", smooth=True),
    Curve(key="lr", title="Learning rate", from_zero=True, peak=True),
    Curve(key="grad_norm", title="Gradient norm", from_zero=True, smooth=True),
    Curve(key="logit_scale", title="Logit scale"),
    Curve(key="samples_per_second", title="Speed", unit="samples/s", from_zero=True, smooth=True),
    Curve(
        key="data_wait_fraction",
        title="Waiting for data",
        unit="of the time",
        from_zero=True,
        smooth=True,
        show=percent_brief,
    ),
)


def write_report(run_dir: Path) -> Path:
    """Draw RUN/report.html from what the run folder holds, and return its path.

    The page needs no network and no script: styles, curves and pictures are in it.

    Raises:
        UsageError: `run_dir` is no run folder.
    """
    run = read_run(run_dir)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "short": short_number}
    zero_shot = [one for one in run.evaluations if "top1" in one.result]
    retrieval = [one for one in run.evaluations if "i2t_recall@1" in one.result]
    html = environment.get_template("page.html").render(
        name=run_dir.resolve().name,
        tiles=_tiles(run, zero_shot, retrieval),
        subtitle=_subtitle(run),
        notes=run.notes,
        zero_shot=zero_shot,
        retrieval=retrieval,
        examples=[one for one in run.evaluations if one.result.get("examples")],
        curves=_curves(run) + _score_curves(zero_shot, retrieval),
        bad_samples=run.bad_samples[:NUM_BAD_SAMPLES_SHOWN],
        num_bad_samples=len(run.bad_samples),
        bad_reasons=Counter(str(row.get("reason", "?")) for row in run.bad_samples).most_common(),
        recipe=run.recipe,
        facts=_flatten(run.facts) + _fingerprints(run.evaluations),
        version=__version__,
    )
    path = run_dir / "report.html"
    replace_file(path, html)
    return path


def _subtitle(run: RunFolder) -> str:
    if not run.metrics:
        return "No step logged yet"
    last = run.metrics[-1]
    parts = [f"{last['step']:,} steps"]
    if "samples_seen" in last:
        parts.append(f"{last['samples_seen']:,} samples seen")
    if "epoch" in last:
        parts.append(f"epoch {last['epoch']}")
    return " · ".join(parts)


def _tiles(
    run: RunFolder, zero_shot: list[Evaluation], retrieval: list[Evaluation]
) -> list[tuple[str, str, str]]:
    """The few figures that a reader looks for first: (name, value, remark)."""
    tiles: list[tuple[str, str, str]] = []
    for one in zero_shot:
        times = one.result["top1"] * one.result["num_classes"]
        remark = f"zero-shot top-1, {times:,.0f} × chance"
        tiles.append((one.name, percent(one.result["top1"]), remark))
    for one in retrieval:
        remark = f"image to text R@1, {one.result['num_images']:,} images"
        tiles.append((one.name, percent(one.result["i2t_recall@1"]), remark))
    losses = [value for _, value in column(run.metrics, "loss")]
    if losses:
        window = losses[-max(1, len(losses) // 20) :]
        remark = "mean of the last steps" if len(window) > 1 else "last step"
        tiles.append(("Loss", f"{statistics.mean(window):.3f}", remark))
    speeds = [value for _, value in column(run.metrics, "samples_per_second")]
    if speeds:
        waits = [value for _, value in column(run.metrics, "data_wait_fraction")]
        remark = f"{percent(statistics.median(waits))} waiting for data" if waits else "median"
        tiles.append(("Samples/s", short_number(statistics.median(speeds)), remark))
    return tiles


def _curves(run: RunFolder) -> list[tuple[str, str, Markup]]:
    """(title, last value, drawing) of each key that the metrics have."""
    drawn: list[tuple[str, str, Markup]] = []
    for curve in CURVES:
        points = column(run.metrics, curve.key)
        if points:
            svg = line_chart(
                points,
                label=curve.title,
                from_zero=curve.from_zero,
                smooth=curve.smooth,
                show=curve.show,
            )
            value = max(y for _, y in points) if curve.peak else points[-1][1]
            text = f"{'peak ' if curve.peak else ''}{curve.show(value)} {curve.unit}".strip()
            drawn.append((curve.title, text, svg))
    return drawn


def _score_curves(
    zero_shot: list[Evaluation], retrieval: list[Evaluation]
) -> list[tuple[str, str, Markup]]:
    """Scores over the steps, of what was evaluated more than once."""
    drawn: list[tuple[str, str, Markup]] = []
    for group, key, what in (
        (zero_shot, "top1", "top-1"),
        (retrieval, "i2t_recall@1", "image to text R@1"),
    ):
        for one in group:
            points = column(one.history, key)
            if len(points) > 1:
                title = f"{one.name}, {what}"
                svg = line_chart(points, label=title, from_zero=True, show=percent_brief)
                drawn.append((title, percent(points[-1][1]), svg))
    return drawn


def _flatten(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            rows += _flatten(value, f"{name} ")
        else:
            rows.append((name, str(value)))
    return rows


def _fingerprints(evaluations: list[Evaluation]) -> list[tuple[str, str]]:
    return [
        (f"{one.name} data fingerprint", str(one.result["data_fingerprint"]))
        for one in evaluations
        if "data_fingerprint" in one.result
    ]
