"""`mmtrain compare`: two results of `mmtrain eval` on the same samples, in words."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmtrain.errors import UsageError
from mmtrain.eval.outcomes import Outcome, read_outcomes
from mmtrain.eval.paired import Paired, compare_paired

Held = Mapping[str, Outcome]


def compare_command(*, a: Path, b: Path) -> None:
    """Print B against A: each figure's difference with its interval, whole and by type.

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
    print(f"A = {a}\nB = {b}")
    for metric in ours:
        whole = _compare(list(ours[metric]), ours[metric], theirs[metric])
        print(f"{metric}: {verdict(whole)}")
        if whole.table is not None:
            both, only_a, only_b, neither = whole.table
            print(
                f"  right in both {both:,}, only in A {only_a:,}, only in B {only_b:,}, in neither "
                f"{neither:,}; McNemar's test p = {whole.p_value:.2g}, as if all were independent"
            )
        for kind, ids in _by_kind(ours[metric]).items():
            print(f"  {kind:32} {_short(_compare(ids, ours[metric], theirs[metric]))}")


def verdict(paired: Paired) -> str:
    """The comparison in a sentence."""
    told = f"{paired.a:.2%} in A, {paired.b:.2%} in B; {paired.num:,} outcomes of "
    told += f"{paired.num_images:,} images"
    points = 100 * paired.difference
    if paired.interval is None:
        return f"B - A is {points:+.2f} points ({told}, which tell no interval)"
    low, high = (100 * end for end in paired.interval)
    if low <= 0 <= high:
        return (
            f"no difference is seen: B - A is {points:+.2f} points, 95 % interval {low:+.2f} to "
            f"{high:+.2f} ({told})"
        )
    better, ends = ("B", (low, high)) if points > 0 else ("A", (-high, -low))
    return (
        f"{better} is better by {abs(points):.2f} points, 95 % interval {ends[0]:.2f} to "
        f"{ends[1]:.2f} ({told})"
    )


def _short(paired: Paired) -> str:
    told = f"{100 * paired.difference:+6.2f} points"
    if paired.interval is None:
        return f"{told}, of one image ({paired.num:,})"
    low, high = (100 * end for end in paired.interval)
    return f"{told}, {low:+.2f} to {high:+.2f} ({paired.num:,})"


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


def _by_kind(held: Held) -> dict[str, list[str]]:
    """Ids of each type, `answer_type yes/no` and the like, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for id, outcome in held.items():
        for name, kind in outcome.kinds.items():
            found[f"{name} {kind}"].append(id)
    return dict(sorted(found.items()))


def _compare(ids: Sequence[str], ours: Held, theirs: Held) -> Paired:
    numbers = {image: n for n, image in enumerate(dict.fromkeys(ours[id].image for id in ids))}
    return compare_paired(
        np.array([ours[id].score for id in ids], dtype=np.float64),
        np.array([theirs[id].score for id in ids], dtype=np.float64),
        np.array([numbers[ours[id].image] for id in ids]),
    )
