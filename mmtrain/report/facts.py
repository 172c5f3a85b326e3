"""What a run is beside its curves: how far it went, how fast, and with what."""

import statistics
from collections.abc import Sequence
from typing import Any

from mmtrain.report.reading import column
from mmtrain.report.run_folder import RunFolder


def run_length(run: RunFolder) -> str:
    """How far a run went, in words."""
    counts = {key: _last(run, key) for key in ("step", "samples_seen")}
    if counts["step"] is None:
        return "No step logged yet"
    parts = [f"{counts['step']:,.0f} steps"]
    if counts["samples_seen"] is not None:
        parts.append(f"{counts['samples_seen']:,.0f} samples seen")
    # None of a stream: nobody knows how long its epochs are.
    num_samples = int(dict(flatten(run.facts)).get("data num samples") or 0)
    if phase_borders(run) and num_samples and counts["samples_seen"] is not None:
        parts.append(f"{counts['samples_seen'] / num_samples:,.4g} epochs")
    elif per_epoch := int(dict(flatten(run.facts)).get("data batches per epoch") or 0):
        parts.append(f"{counts['step'] / per_epoch:,.4g} epochs")
    return " · ".join(parts)


def phase_borders(run: RunFolder) -> list[tuple[float, float]]:
    """The step that each phase but the first begins behind, and its number."""
    phases = run.facts.get("phases")
    if not isinstance(phases, dict):
        return []
    found = ((each.get("first_step"), int(number)) for number, each in phases.items())
    return [(first, number) for first, number in found if first]


def recent(values: Sequence[float]) -> float:
    """Mean of the last twentieth."""
    return statistics.mean(values[-max(1, len(values) // 20) :])


def last_loss(run: RunFolder) -> float | None:
    """Mean loss of the last twentieth of the logged steps."""
    losses = [value for _, value in column(run.metrics, "loss")]
    return recent(losses) if losses else None


def speed(run: RunFolder) -> float | None:
    """Median of the samples per second."""
    speeds = [value for _, value in column(run.metrics, "samples_per_second")]
    return statistics.median(speeds) if speeds else None


def facts_of(run: RunFolder) -> list[tuple[str, str]]:
    """run.json as rows of a table; of what a resume changed, the value before and since."""
    return [
        (name, value.replace(", ", " → ", 1) if name.startswith("changed at ") else value)
        for name, value in flatten(run.facts)
    ]


def _last(run: RunFolder, key: str) -> float | None:
    points = column(run.metrics, key)
    return points[-1][1] if points else None


def flatten(
    facts: dict[str, Any], prefix: str = "", *, between: str = " "
) -> list[tuple[str, str]]:
    """Nested keys as one name each, values as text."""
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            rows += flatten(value, f"{name}{between}", between=between)
        else:
            rows.append((name.replace("_", " ") if between == " " else name, _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
