"""Two results on the same samples: what differs, whole and by type, and which samples changed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtrain.errors import UsageError
from mmtrain.eval.outcomes import Outcome, read_figures, read_outcomes
from mmtrain.eval.paired import Paired, compare_paired

MOST_TYPES = 24
"""Types of a name, such as answer_type, that are shown one by one."""

Held = Mapping[str, Outcome]
Pair = tuple[Outcome, Outcome]


@dataclass(frozen=True, kw_only=True)
class TypeRow:
    """The samples of one type."""

    name: str
    """Such as answer_type."""
    kind: str
    """Such as yes/no."""
    paired: Paired
    """B against A."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure of both."""

    metric: str
    """Which."""
    whole: Paired
    """B against A, over all samples."""
    rows: tuple[TypeRow, ...]
    """By type, in order."""
    num_types: Mapping[str, int]
    """How many types each name has; of more than MOST_TYPES those that differ most are in `rows`,
    as many of either sign where there are."""
    pairs: tuple[Pair, ...]
    """Every sample's outcome in A and in B."""

    @property
    def rose(self) -> list[Pair]:
        """The samples that B does better, the most so first."""
        return sorted((p for p in self.pairs if _gain(p) > 0), key=lambda p: (-_gain(p), p[0].id))

    @property
    def fell(self) -> list[Pair]:
        """Those that A does better, likewise."""
        return sorted((p for p in self.pairs if _gain(p) < 0), key=lambda p: (_gain(p), p[0].id))


def compare_results(a: Path, b: Path) -> list[Comparison]:
    """Each figure of two results of `mmtrain eval`.

    Raises:
        UsageError: a file cannot be read, or they are of other samples.
    """
    ours, theirs = read_outcomes(a), read_outcomes(b)
    if ours.keys() != theirs.keys():
        raise UsageError(
            f"{a} is of {', '.join(sorted(ours))} and {b} of {', '.join(sorted(theirs))}; compare "
            "two results of one kind of evaluation"
        )
    for metric in ours:
        _refuse_other_samples(ours[metric], theirs[metric], a=a, b=b)
    return [_comparison(metric, ours[metric], theirs[metric]) for metric in ours]


def said_otherwise(a: Path, b: Path) -> list[str]:
    """What two results say otherwise that a reader takes to be the same, a sentence for each.

    The samples of both are known by their names alone: the pictures, labels or classes behind them
    may be others.
    """
    ours, theirs = read_figures(a), read_figures(b)
    found: list[str] = []
    for key, what in _TAKEN_TO_BE_SAME.items():
        one, other = ours.get(key), theirs.get(key)
        if one is not None and other is not None and one != other:
            found.append(f"{b} has another {key} than {a} ({other}, {one}): {what}")
    return found


_TAKEN_TO_BE_SAME = {
    "data_fingerprint": "the samples have the same names, and may not be the same",
    "classes_fingerprint": "ids or names of the classes differ, or their order",
    "mode": "answers were compared in another way",
}


def verdict(paired: Paired, *, a: str = "A", b: str = "B") -> str:
    """The comparison in a sentence, the two by their names."""
    points = 100 * paired.difference
    if paired.interval is None:
        return f"{b} - {a} is {points:+.2f} points, of one image, which tells no interval"
    low, high = (100 * end for end in paired.interval)
    if low <= 0 <= high:
        return (
            f"no difference is seen: {b} - {a} is {points:+.2f} points, 95 % interval {low:+.2f} "
            f"to {high:+.2f}"
        )
    better, ends = (b, (low, high)) if points > 0 else (a, (-high, -low))
    return (
        f"{better} is better by {abs(points):.2f} points, 95 % interval {ends[0]:.2f} to "
        f"{ends[1]:.2f}"
    )


def _comparison(metric: str, ours: Held, theirs: Held) -> Comparison:
    # In the order of the ids, so that a resample draws the same whatever order they came in.
    pairs = tuple((ours[id], theirs[id]) for id in sorted(ours))
    types: dict[str, dict[str, list[Pair]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        for name, kind in pair[0].kinds.items():
            types[name][kind].append(pair)
    rows = [
        TypeRow(name=name, kind=kind, paired=_paired(kinds[kind]))
        for name, kinds in sorted(types.items())
        for kind in _shown(kinds)
    ]
    return Comparison(
        metric=metric,
        whole=_paired(pairs),
        rows=tuple(rows),
        num_types={name: len(kinds) for name, kinds in types.items()},
        pairs=pairs,
    )


def _shown(kinds: Mapping[str, Sequence[Pair]]) -> list[str]:
    """All by letter, or those at both ends by their difference."""
    if len(kinds) <= MOST_TYPES:
        return sorted(kinds)
    mean = {kind: sum(map(_gain, some)) / len(some) for kind, some in kinds.items()}
    order = sorted(kinds, key=lambda kind: (mean[kind], kind))
    return order[: MOST_TYPES // 2] + order[-MOST_TYPES // 2 :]


def _gain(pair: Pair) -> float:
    return pair[1].score - pair[0].score


def _paired(pairs: Sequence[Pair]) -> Paired:
    numbers = {image: n for n, image in enumerate(dict.fromkeys(one.image for one, _ in pairs))}
    return compare_paired(
        np.array([one.score for one, _ in pairs], dtype=np.float64),
        np.array([other.score for _, other in pairs], dtype=np.float64),
        np.array([numbers[one.image] for one, _ in pairs]),
    )


def _refuse_other_samples(ours: Held, theirs: Held, *, a: Path, b: Path) -> None:
    for here, there, path, other in ((ours, theirs, a, b), (theirs, ours, b, a)):
        if missing := here.keys() - there.keys():
            raise UsageError(
                f"{other} has no outcome of {min(missing)} and {len(missing) - 1} more that {path} "
                "has; compare results on the same set"
            )
    # Two kinds of evaluation may call an image otherwise, but not take two for one.
    pairs = {(outcome.image, theirs[id].image) for id, outcome in ours.items()}
    if not len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}):
        raise UsageError(
            f"{a} and {b} put the same ids to other images; compare results on the same set"
        )
