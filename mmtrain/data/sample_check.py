"""Which samples a training would not use: every one is read, and its image decoded, once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmtrain.data.members import UNIQUE
from mmtrain.data.sample_error import SampleError
from mmtrain.data.samples import NO_CAPTION, NUM_CAPTION_DRAWS, SampleReader
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.workers import iterate_batches
from mmtrain.errors import UsageError, on_one_line

_PIECE = 64
"""Samples that a worker looks at before it reports."""
_MAX_NAMED = 100


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """A sample that a training would replace by another one."""

    key: str
    """Its key."""
    place: str
    """The shard, manifest or folder that it is in."""
    reason: str
    """Why, as training would count it."""
    detail: str
    """What is this sample's own, such as a path; may be empty."""

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        # A malformed row has no other name than its place.
        name = self.key if self.key == self.place else f"{self.place}: {self.key}"
        return on_one_line(f"{name}: {self.reason}{detail}")


@dataclass(frozen=True, kw_only=True)
class SampleReport:
    """What reading all samples found."""

    num_samples: int
    """Samples looked at."""
    num_labelled: int
    """Those with a label, where a key of labels was given."""
    reasons: dict[str, int]
    """How many samples cannot be used, by reason, the most frequent first."""
    named: tuple[Unusable, ...]
    """Samples that cannot be used, at most 100."""
    hint: str
    """What a sample without a caption has, where none has one; else empty."""

    @property
    def num_unusable(self) -> int:
        """Samples that cannot be used."""
        return sum(self.reasons.values())

    @property
    def told(self) -> str:
        """The reasons in one line."""
        return ", ".join(f"{reason}: {count:,}" for reason, count in self.reasons.items())


def check_samples(
    source: SampleSource,
    *,
    captions: Mapping[str, float],
    label_key: str | None = None,
    workers: int = 0,
    samples: np.ndarray | None = None,
) -> SampleReport:
    """Read every sample as a training would.

    Args:
        source: the samples.
        captions: where captions are, as `data.captions`; empty: none are wanted.
        label_key: field of the .json whose labels are counted.
        workers: processes that read and decode; 0: this one.
        samples: which of them; None: all.

    Raises:
        UsageError: a file cannot be read, tried several times.
    """
    reader = SampleReader(source, transform=None, captions=captions, label_key=label_key)
    return check_with(reader, samples=samples, workers=workers)


def check_with(reader: SampleReader, *, samples: np.ndarray | None, workers: int) -> SampleReport:
    """What `check_samples` does, of a reader's source."""
    source = reader.source
    numbers = np.arange(source.num_samples) if samples is None else samples
    num_pieces = -(-numbers.size // _PIECE)
    reasons: Counter[str] = Counter()
    named: list[Unusable] = []
    num_labelled = 0
    pieces = iterate_batches(
        _Pieces(reader, numbers), 0, num_pieces, workers=workers, prefetch=2, pin_memory=False
    )
    for piece in pieces:
        num_labelled += piece.num_labelled
        reasons.update(each.reason for each in piece.unusable)
        named += piece.unusable[: _MAX_NAMED - len(named)]
    bare = bool(reader.captions) and reasons.keys() == {NO_CAPTION}
    bare = bare and reasons.total() == numbers.size
    return SampleReport(
        num_samples=int(numbers.size),
        num_labelled=num_labelled,
        reasons=_most_first(reasons),
        named=tuple(named),
        hint=reader.describe(0) if bare else "",
    )


def joined_reports(reports: Sequence[SampleReport], *, places: Sequence[str] = ()) -> SampleReport:
    """Those of all parts of the data as one: the same as of a single check.

    Args:
        reports: in the order of the parts.
        places: the shards in the order of the data; empty: parts follow each other.
    """
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons.update(report.reasons)
    rank = {place: number for number, place in enumerate(places)}
    named = [each for report in reports for each in report.named]
    return SampleReport(
        num_samples=sum(report.num_samples for report in reports),
        num_labelled=sum(report.num_labelled for report in reports),
        reasons=_most_first(reasons),
        named=tuple(sorted(named, key=lambda each: rank.get(each.place, 0))[:_MAX_NAMED]),
        hint=reports[0].hint if all(report.hint for report in reports) else "",
    )


def _most_first(counts: Mapping[str, int]) -> dict[str, int]:
    """Of like counts by name, whichever was met first."""
    return dict(sorted(counts.items(), key=lambda named: (-named[1], named[0])))


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What some samples came to."""

    unusable: list[Unusable]
    num_labelled: int

    def pin_memory(self) -> "_Piece":
        """Itself: it holds no tensors."""
        return self


class _Pieces:
    """Samples, `_PIECE` at a time."""

    def __init__(self, reader: SampleReader, numbers: np.ndarray) -> None:
        self.reader, self.numbers = reader, numbers

    def batch(self, number: int) -> _Piece:
        """Read some samples and keep what is wrong with them."""
        source, unusable, num_labelled = self.reader.source, [], 0
        draws = (0.0,) * NUM_CAPTION_DRAWS
        for sample in self.numbers[number * _PIECE : (number + 1) * _PIECE].tolist():
            try:
                read = self.reader.read(sample, caption_draws=draws, transform_draws=torch.empty(0))
                num_labelled += read.label != UNIQUE
            except SampleError as error:
                unusable.append(
                    Unusable(
                        key=source.key(sample),
                        place=source.place(sample),
                        reason=str(error),
                        detail=error.detail,
                    )
                )
            except OSError as error:
                raise UsageError(f"data: {error}; mend that and check again") from error
        return _Piece(unusable=unusable, num_labelled=num_labelled)
