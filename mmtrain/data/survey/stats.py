"""Figures of a data set: what its images and captions are like, what is there twice, or bad."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmtrain.data.samples import UNIQUE, label_of
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.survey.duplicates import (
    file_hash,
    groups_of_files,
    groups_of_pictures,
    picture_hash,
)
from mmtrain.data.survey.piece import COLUMNS, Piece, columns_of, joined
from mmtrain.data.survey.scripts import script_of
from mmtrain.data.survey.seen import Seen, look_at
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.data.workers import iterate_batches
from mmtrain.errors import UsageError

_PIECE = 64
"""Samples that a worker looks at before it reports."""
_MAX_GROUPS = 50
"""Groups of duplicates that are named, the largest first."""
_MAX_KEYS = 6


class Survey:
    """Looks at samples, some at a time.

    Args:
        source: the samples.
        numbers: which of them.
        captions: places where captions are; empty: none are wanted.
        caption_lines: as `data.caption_lines`.
        label_key: field of the .json that identifies a concept; None: none is counted.
        tokenizer: counts tokens; its context should be longer than any caption.
        progress: told how many samples were looked at, of how many.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        numbers: np.ndarray,
        captions: Collection[str],
        caption_lines: bool | None,
        label_key: str | None,
        tokenizer: Tokenizer,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.source, self.numbers = source, numbers
        self._captions, self._lines = captions, caption_lines
        self._label_key, self._tokenizer = label_key, tokenizer
        self._progress = progress

    def run(self, *, workers: int) -> Piece:
        """Everything in one piece.

        Raises:
            UsageError: a file cannot be read, tried several times.
        """
        num_pieces = -(-self.numbers.size // _PIECE)
        pieces = iterate_batches(self, 0, num_pieces, workers=workers, prefetch=2, pin_memory=False)
        return joined(self._told(pieces))

    def _told(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        num_looked = 0
        for piece in pieces:
            yield piece
            num_looked += piece.num_looked
            if self._progress is not None:
                self._progress(num_looked, self.numbers.size)

    def batch(self, number: int) -> Piece:
        """Look at some samples."""
        piece = Piece()
        rows: dict[str, list[int]] = {name: [] for name in COLUMNS}
        for sample in self.numbers[number * _PIECE : (number + 1) * _PIECE].tolist():
            try:
                seen = look_at(
                    self.source, sample, captions=self._captions, caption_lines=self._lines
                )
            except OSError as error:
                raise UsageError(f"data: {error}; mend that and start again") from error
            self._count(seen, piece, rows)
            piece.num_looked += 1
        piece.columns = columns_of(rows)
        return piece

    def _count(self, seen: Seen, piece: Piece, rows: dict[str, list[int]]) -> None:
        if seen.reason:
            piece.reasons[seen.reason.partition(" (")[0]] += 1
            told = {"key": seen.key, "place": seen.place, "reason": seen.reason}
            piece.bad.append({"sample": seen.number, **told})
        if seen.pixels_HWC is not None and seen.size is not None:
            piece.kinds[seen.kind] += 1
            rows["number"].append(seen.number)
            rows["image_bytes"].append(len(seen.image))
            rows["width"].append(seen.size[0])
            rows["height"].append(seen.size[1])
            rows["captions"].append(len(seen.captions))
            rows["file_hash"].append(file_hash(seen.image))
            rows["picture_hash"].append(picture_hash(seen.pixels_HWC))
        if self._label_key is not None:
            rows["label"].append(label_of(seen.fields.get(self._label_key)))
        if not seen.captions:
            return
        rows["words"] += [len(text.split()) for text in seen.captions]
        rows["tokens"] += self._tokenizer.encode(seen.captions)[1].tolist()
        piece.scripts.update(map(script_of, seen.captions))
        rows["text_hash"] += [file_hash(text.encode("utf-8", "replace")) for text in seen.captions]


def figures(whole: Piece, source: SampleSource, *, context_length: int) -> dict[str, Any]:
    """What the pieces come to, as JSON has it.

    Args:
        whole: of all samples that were looked at.
        source: names them.
        context_length: tokens that a model keeps of a text.
    """
    of = whole.columns
    num_bad = whole.reasons.total()
    result: dict[str, Any] = {
        "num_samples": source.num_samples,
        "num_looked_at": whole.num_looked,
        "num_usable": whole.num_looked - num_bad,
        "num_bad": num_bad,
        "bad_by_reason": _most_first(whole.reasons),
        "bad": whole.bad,
        "data_fingerprint": source.fingerprint,
        "image_bytes": {"total": int(of["image_bytes"].sum()), **spread(of["image_bytes"])},
        "width": spread(of["width"]),
        "height": spread(of["height"]),
        "short_side": spread(np.minimum(of["width"], of["height"])),
        "aspect": spread(of["width"] / np.maximum(of["height"], 1)),
        "formats": _most_first(whole.kinds),
        "num_captions": int(of["words"].size),
        "captions_per_image": spread(of["captions"]),
        "distinct_captions": int(np.unique(of["text_hash"]).size),
        "caption_words": spread(of["words"]),
        "caption_tokens": spread(of["tokens"]),
        "captions_cut": int((of["tokens"] > context_length).sum()),
        "context_length": context_length,
        "scripts": _most_first(whole.scripts),
        "duplicates": _duplicates(of, source),
    }
    if of["label"].size:
        _, count_L = np.unique(of["label"][of["label"] != UNIQUE], return_counts=True)
        result["labels"] = {
            "num_labelled": int(count_L.sum()),
            "num_distinct": int(count_L.size),
            "largest": int(count_L.max(initial=0)),
        }
    return result


def _most_first(counts: Mapping[str, int]) -> dict[str, int]:
    """Of like counts by name, whichever was met first."""
    return dict(sorted(counts.items(), key=lambda named: (-named[1], named[0])))


def spread(values: np.ndarray) -> dict[str, float]:
    """How values lie: mean and quantiles; empty of none."""
    if not values.size:
        return {}
    names = {"min": 0, "p1": 1, "p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "p99": 99}
    found = np.percentile(values, [*names.values(), 100])
    quantiles = dict(zip([*names, "max"], found.tolist(), strict=True))
    return {"mean": float(values.mean()), **quantiles}


def _duplicates(of: dict[str, np.ndarray], source: SampleSource) -> dict[str, Any]:
    files = groups_of_files(of["file_hash"])
    pictures = groups_of_pictures(of["picture_hash"])
    return {
        "same_file": _told(files, of["number"], source),
        "same_picture": _told(pictures, of["number"], source),
    }


def _told(
    groups: Sequence[np.ndarray], number_N: np.ndarray, source: SampleSource
) -> dict[str, Any]:
    """How many images are there beside a first one, and the largest groups by key."""
    largest = sorted(groups, key=lambda each: (-each.size, each[0]))[:_MAX_GROUPS]
    named = [(each.size, number_N[each[:_MAX_KEYS]].tolist()) for each in largest]
    return {
        "num_groups": len(groups),
        "num_superfluous": sum(each.size - 1 for each in groups),
        "largest": [
            {"num": size, "samples": samples, "keys": [source.key(n) for n in samples]}
            for size, samples in named
        ],
    }
