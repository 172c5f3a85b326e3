"""95 % intervals of what an evaluation found, from its figures and its outcomes."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.eval.intervals import Interval, count_intervals, mean_interval
from mmtrain.eval.outcomes import Outcome, outcomes_path, read_outcomes

Intervals = dict[str, Interval]
"""By figure; of a type's as `per_answer_type yes/no`."""

MOST_KINDS = 12
"""Types of a name that a table lists."""


def read_intervals(path: Path, result: Mapping[str, Any], notes: list[str]) -> Intervals:
    """All that can be told of a result.

    Args:
        path: NAME.json.
        result: its content.
        notes: to which damaged outcomes are added.
    """
    found = count_intervals(result)
    if not outcomes_path(path).is_file():
        return found
    try:
        held = read_outcomes(path)
    except UsageError as error:
        notes.append(f"No intervals of {path.stem} are told: {error}.")
        return found
    for metric, outcomes in held.items():
        if (interval := mean_interval(outcomes.values())) is not None:
            found[metric] = interval
    return found | _of_kinds(result, held)


def _of_kinds(result: Mapping[str, Any], held: Mapping[str, Mapping[str, Outcome]]) -> Intervals:
    """Of accuracies by type."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in held.get("accuracy", {}).values():
        for name, kind in outcome.kinds.items():
            told = result.get(f"per_{name}")
            if isinstance(told, Mapping) and kind in told and len(told) <= MOST_KINDS:
                groups[f"per_{name} {kind}"].append(outcome)
    found = {name: mean_interval(some) for name, some in groups.items()}
    return {name: interval for name, interval in found.items() if interval is not None}
