"""What a run is beside its curves: how far it went, how fast, and with what."""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mmtrain.report.reading import column, number, parse_recipe
from mmtrain.report.run_folder import RunFolder
from mmtrain.settings.counted import counted


def run_length(run: RunFolder) -> str:
    """How far a run went, in words."""
    counts = {key: _last(run, key) for key in ("step", "samples_seen")}
    if counts["step"] is None:
        return "No step logged yet"
    parts = [counted(counts["step"], "step")]
    if counts["samples_seen"] is not None:
        parts.append(f"{counted(counts['samples_seen'], 'sample')} seen")
    # 0 of a stream: nobody knows how long its epochs are.
    data = run.facts["data"] if isinstance(run.facts.get("data"), dict) else {}
    num_samples = number(data.get("num_samples"))
    if phase_borders(run) and num_samples and counts["samples_seen"] is not None:
        parts.append(f"{counts['samples_seen'] / num_samples:,.4g} epochs")
    elif per_epoch := number(data.get("batches_per_epoch")):
        parts.append(f"{counts['step'] / per_epoch:,.4g} epochs")
    return " · ".join(parts)


def run_making(run: RunFolder) -> str:
    """When a run began, how long it trained and on what, without what is not known."""
    facts = run.facts
    device, ranks = facts.get("device"), facts.get("ranks")
    several = f" × {ranks}" if isinstance(ranks, int) and ranks > 1 else ""
    seconds = training_seconds(run)
    parts = [
        f"begun {facts['begun']}" if isinstance(facts.get("begun"), str) else "",
        f"trained for {duration(seconds)}" if seconds else "",
        f"on {device}{several}" if isinstance(device, str) else "",
    ]
    return " · ".join(filter(None, parts))


def training_seconds(run: RunFolder) -> float:
    """The time that the logged steps took, by their own speeds: without evaluations and pauses."""
    seen, speeds = (
        dict(column(run.metrics, key)) for key in ("samples_seen", "samples_per_second")
    )
    steps = [0, *sorted(seen)]
    return sum(
        max(0.0, seen[step] - seen.get(before, 0)) / speeds[step]
        for before, step in pairwise(steps)
        if speeds.get(step, 0) > 0
    )


def duration(seconds: float) -> str:
    """In the one unit that suits: 40 s, 12 min, 3.4 h, 2.1 days."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def of_training(run: RunFolder) -> set[str]:
    """The evaluations whose recipe names a place of the training data: what they tell is not of
    images that the model never saw."""
    recipe = parse_recipe(run.recipe)
    try:
        data = recipe["data"]
        trained = _places(data.get("train"))
        for one in data.get("mixture", []):
            trained |= _places(one.get("data"))
        sections = recipe.get("eval", {}).values()
        found = [one for rows in sections if isinstance(rows, list) for one in rows]
        return {str(one["name"]) for one in found if _places(one.get("data")) & trained}
    except (KeyError, TypeError, AttributeError):
        return set()  # what a damaged recipe is lacking, the page tells elsewhere


def seen_before(run: RunFolder) -> list[str]:
    """A line where evaluations read the training's own data, for whoever reads their figures."""
    trained_on = of_training(run)
    names = [one.name for one in run.evaluations if one.name in trained_on]
    if not names:
        return []
    one = len(names) == 1
    return [
        f"{', '.join(names)} {'reads' if one else 'read'} the training's own data: what "
        f"{'it tells' if one else 'they tell'} is not of images that the model never saw."
    ]


def _places(value: Any) -> set[str]:
    words = value if isinstance(value, list) else [value]
    return {word for word in words if isinstance(word, str)}


def phase_borders(run: RunFolder) -> list[tuple[float, float]]:
    """The step that each phase but the first begins behind, and its number."""
    phases = run.facts.get("phases")
    if not isinstance(phases, dict):
        return []
    found = [
        (number(each.get("first_step")), int(name))
        for name, each in phases.items()
        if name.isdecimal() and isinstance(each, dict)
    ]
    return [(first, phase) for first, phase in found if first]


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
        # A table in a list, such as an evaluation, is told apart from the next by its own bound.
        between = "; " if any(isinstance(each, dict) for each in value) else ", "
        return between.join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_shown(each)}" for key, each in value.items()) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
