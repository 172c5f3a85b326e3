"""Some samples of many: by their keys, by what they hold, drawn by chance yet the same again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np

from mmtrain.data.order.plan import EpochPlan
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.survey.seen import Seen
from mmtrain.data.survey.where import Where


def drawn(num_samples: int, *, seed: int, num: int | None = None) -> np.ndarray:
    """`num` of the numbers up to `num_samples` in a drawn order; None: all of them."""
    order = EpochPlan([num_samples], seed=seed, shuffle_group=1)
    return order.samples(0, np.arange(num_samples if num is None else min(num, num_samples)))


def pick(
    source: SampleSource,
    *,
    num: int,
    seed: int,
    keys: Sequence[str],
    where: Sequence[Where],
    only_bad: bool,
    look: Callable[[int], Seen],
    among: np.ndarray | None = None,
) -> tuple[list[Seen], int]:
    """Samples that are meant, in the order of the data, and how many were looked at for them.

    Those whose image is of no size that is meant, as a catalogue of their shards has it, are not
    opened.

    Args:
        source: the samples.
        num: at most so many; the search ends with them.
        seed: of the draw.
        keys: globs, of which a key must match one; empty: any key.
        where: conditions that must all hold.
        only_bad: those that cannot be used.
        look: reads a sample.
        among: numbers of samples, of which alone some are taken; None: all.
    """
    found: list[Seen] = []
    num_looked = 0
    order = drawn(source.num_samples, seed=seed)
    if among is not None:
        order = order[np.isin(order, among)]
    for seen in map(look, _named(source, _of_size(source, order, where), keys)):
        num_looked += 1
        if (seen.reason or not only_bad) and all(each.holds(seen) for each in where):
            found.append(seen)
        if len(found) == num:
            break
    return sorted(found, key=lambda seen: seen.number), num_looked


def _of_size(source: SampleSource, numbers: np.ndarray, where: Sequence[Where]) -> Iterator[int]:
    for number in numbers.tolist():
        size = source.image_size(number) if where and isinstance(source, ShardSource) else None
        if size is None or not any(each.excludes(size) for each in where):
            yield number


def _named(source: SampleSource, numbers: Iterable[int], keys: Sequence[str]) -> Iterator[int]:
    for number in numbers:
        if not keys or any(fnmatchcase(source.key(number), key) for key in keys):
            yield number
