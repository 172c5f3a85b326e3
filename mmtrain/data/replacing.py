"""What stands in for a bad sample, and how bad ones are told."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from mmtrain.data.batch import BadSample
from mmtrain.data.mixture import SourceSettings
from mmtrain.data.order.batches import RowPlan, Rows
from mmtrain.data.order.randomness import uniform
from mmtrain.data.sample_error import SampleError
from mmtrain.data.samples import NO_CAPTION
from mmtrain.data.sources.source import SampleSource

MOST_REPLACEMENTS = 16
"""Samples tried in place of a bad one: with half of all bad, 1 position in 130,000 fails."""


def candidates(plan: RowPlan, rows: Rows, row: int, *, seed: int) -> Iterator[int]:
    """The planned sample of a row, then others of its source that the position alone picks.

    Args:
        plan: the order.
        rows: of the batch.
        row: which of them.
        seed: the run's.
    """
    planned = int(rows.sample_B[row])
    yield planned
    draws = uniform(
        seed=seed,
        epoch=rows.epoch,
        position_B=rows.position_B[row : row + 1].tolist(),
        purpose="replacement",
        num=MOST_REPLACEMENTS,
    )
    tried = {planned}
    for number in plan.others(rows, row, draws[0].tolist()):
        if number not in tried:
            tried.add(number)
            yield number


def bad_sample(
    source: SampleSource, number: int, error: SampleError, *, name: str, rows: Rows, row: int
) -> BadSample:
    """The account of a sample that could not be read.

    Args:
        source: where it is.
        number: in the source.
        error: why.
        name: of the source.
        rows: of the batch.
        row: that it was read for.
    """
    return BadSample(
        key=source.key(number),
        shard=source.place(number),
        source=name,
        reason=str(error),
        detail=error.detail,
        position=int(rows.position_B[row]),
    )


def all_bad(
    settings: SourceSettings, bad: Sequence[BadSample], *, epoch: int, texts: Callable[[], str]
) -> str:
    """What is said where every candidate of a row is bad.

    Args:
        settings: of the source.
        bad: the candidates.
        epoch: of the source.
        texts: tells which texts the planned sample has.
    """
    tried = f"{len(bad)} samples tried for position {bad[0].position} of epoch {epoch}"
    if all(sample.reason == NO_CAPTION for sample in bad):
        places = ", ".join(settings.captions)
        return (
            f"{settings.key}.captions = {{ {places} }}: none of {tried} has a caption there; "
            f"{texts()}"
        )
    reasons = Counter(sample.reason for sample in bad).most_common()
    counts = ", ".join(f"{reason}: {count}" for reason, count in reasons)
    return (
        f"{settings.key}.train: all of {tried} are bad ({counts}), the first is {bad[0]}; "
        "mend such samples or leave them out"
    )
