"""The samples of a batch's rows: what stands in for a bad one, and how bad ones are told."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmtrain.data.batch import BadSample
from mmtrain.data.images.transforms import TrainTransform
from mmtrain.data.mixture import SourceSettings
from mmtrain.data.order.batches import RowPlan, Rows
from mmtrain.data.order.plan import PADDING
from mmtrain.data.order.randomness import uniform
from mmtrain.data.sample_error import SampleError
from mmtrain.data.samples import NO_CAPTION, NUM_CAPTION_DRAWS, Sample, SampleReader
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.threads import Threads
from mmtrain.errors import UsageError

MOST_REPLACEMENTS = 16
"""Samples tried in place of a bad one: with half of all bad, 1 position in 130,000 fails."""


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """Reads the samples of a batch's rows."""

    sources: Sequence[SampleSource]
    settings: Sequence[SourceSettings]
    """Of each source."""
    threads: Threads
    """That share the rows out."""
    seed: int
    """The run's."""

    def read(
        self, rows: Rows, *, plan: RowPlan, readers: Sequence[SampleReader]
    ) -> tuple[list[Sample | None], tuple[BadSample, ...]]:
        """The rows' samples, None on padding, and the bad ones that others replaced.

        Args:
            rows: of the batch.
            plan: the order.
            readers: of each source.

        Raises:
            UsageError: many replacements of a sample are bad.
        """
        draws = self.draws(rows)

        def read(row: int) -> tuple[Sample | None, list[BadSample]]:
            refused: list[BadSample] = []
            if rows.position_B[row] == PADDING:
                return None, refused
            reader = readers[int(rows.source_B[row])]
            for number in candidates(plan, rows, row, seed=self.seed):
                try:
                    return reader.read(number, **draws(row)), refused
                except SampleError as error:
                    refused.append(self.refused(rows, row, number, error, before=refused))
            raise self.all_bad(rows, row, refused, reader)

        made = self.threads.map(read, range(rows.position_B.size))
        return [sample for sample, _ in made], tuple(bad for _, each in made for bad in each)

    def draws(self, rows: Rows) -> Callable[[int], dict[str, Any]]:
        """What decides of a row's caption and crop, as `SampleReader.read` takes it."""
        draw: Callable[..., Tensor] = partial(
            uniform, seed=self.seed, epoch=rows.epoch, position_B=torch.from_numpy(rows.position_B)
        )
        caption_B2 = draw(purpose="caption", num=NUM_CAPTION_DRAWS).tolist()
        crop_BN = draw(purpose="crop", num=TrainTransform.num_draws)
        return lambda row: {"caption_draws": caption_B2[row], "transform_draws": crop_BN[row]}

    def refused(
        self, rows: Rows, row: int, number: int, error: SampleError, *, before: Sequence[BadSample]
    ) -> BadSample:
        """The account of a sample that could not be read.

        Args:
            rows: of the batch.
            row: that it was read for.
            number: in its source.
            error: why.
            before: what was refused for the row already.
        """
        source = self.sources[int(rows.source_B[row])]
        return BadSample(
            key=source.key(number),
            shard=source.place(number),
            source=self.settings[int(rows.source_B[row])].name,
            reason=str(error),
            detail=error.detail,
            position=int(rows.position_B[row]),
            is_replacement=bool(before),
        )

    def all_bad(
        self, rows: Rows, row: int, bad: Sequence[BadSample], reader: SampleReader
    ) -> UsageError:
        """What is said where every candidate of a row is bad."""
        return UsageError(
            _all_bad(
                self.settings[int(rows.source_B[row])],
                bad,
                epoch=int(rows.source_epoch_B[row]),
                texts=partial(reader.describe_texts, int(rows.sample_B[row])),
            )
        )


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


def _all_bad(
    settings: SourceSettings, bad: Sequence[BadSample], *, epoch: int, texts: Callable[[], str]
) -> str:
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
