"""Figures of a data set: what its images and captions are like, what is there twice, or bad."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
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
from mmtrain.data.survey.scripts import script_of
from mmtrain.data.survey.seen import Seen, look_at
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.data.workers import iterate_batches
from mmtrain.errors import UsageError

_PIECE = 64
"""Samples that a worker looks at before it reports."""
_PER_IMAGE = {
    "number": np.int64,
    "image_bytes": np.int64,
    "width": np.int32,
    "height": np.int32,
    "captions": np.int32,
    "file_hash": np.uint64,
    "picture_hash": np.uint64,
}
_PER_CAPTION = {"words": np.int32, "tokens": np.int32}
_MAX_GROUPS = 50
"""Groups of duplicates that are named, the largest first."""
_MAX_KEYS = 6
_MAX_BAD = 100


@dataclass(kw_only=True)
class Piece:
    """What some samples came to."""

    num_looked: int = 0
    """How many there were."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """One value for each usable image, or each caption."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Formats of images."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Scripts of captions."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why samples cannot be used."""
    bad: list[dict[str, str]] = field(default_factory=list)
    """Those that cannot be used, by name."""
    labels: Counter[int] = field(default_factory=Counter)
    """Samples of each label."""
    texts: Counter[int] = field(default_factory=Counter)
    """Captions by their hash."""

    def pin_memory(self) -> "Piece":
        """Itself: it holds no tensors."""
        return self


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
        whole, num_looked = Piece(), 0
        columns: dict[str, list[np.ndarray]] = {name: [] for name in _PER_IMAGE | _PER_CAPTION}
        for piece in iterate_batches(
            self, 0, num_pieces, workers=workers, prefetch=2, pin_memory=False
        ):
            for name, values in piece.columns.items():
                columns[name].append(values)
            for counted in ("kinds", "scripts", "reasons", "labels", "texts"):
                getattr(whole, counted).update(getattr(piece, counted))
            whole.bad += piece.bad[: _MAX_BAD - len(whole.bad)]
            num_looked += piece.num_looked
            if self._progress is not None:
                self._progress(num_looked, self.numbers.size)
        whole.columns = {name: np.concatenate(values) for name, values in columns.items()}
        return whole

    def batch(self, number: int) -> Piece:
        """Look at some samples."""
        piece = Piece()
        rows: dict[str, list[int]] = {name: [] for name in _PER_IMAGE | _PER_CAPTION}
        for sample in self.numbers[number * _PIECE : (number + 1) * _PIECE].tolist():
            try:
                seen = look_at(
                    self.source, sample, captions=self._captions, caption_lines=self._lines
                )
            except OSError as error:
                raise UsageError(f"data: {error}; mend that and start again") from error
            self._count(seen, piece, rows)
            piece.num_looked += 1
        kinds = _PER_IMAGE | _PER_CAPTION
        piece.columns = {name: np.array(each, dtype=kinds[name]) for name, each in rows.items()}
        return piece

    def _count(self, seen: Seen, piece: Piece, rows: dict[str, list[int]]) -> None:
        if seen.reason:
            piece.reasons[seen.reason.partition(" (")[0]] += 1
            piece.bad.append({"key": seen.key, "place": seen.place, "reason": seen.reason})
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
            piece.labels[label_of(seen.fields.get(self._label_key))] += 1
        if not seen.captions:
            return
        rows["words"] += [len(text.split()) for text in seen.captions]
        rows["tokens"] += self._tokenizer.encode(seen.captions)[1].tolist()
        piece.scripts.update(map(script_of, seen.captions))
        piece.texts.update(file_hash(text.encode("utf-8", "replace")) for text in seen.captions)


def figures(
    whole: Piece, source: SampleSource, *, num_looked: int, context_length: int
) -> dict[str, Any]:
    """What the pieces come to, as JSON has it.

    Args:
        whole: of all samples that were looked at.
        source: names them.
        num_looked: how many these are.
        context_length: tokens that a model keeps of a text.
    """
    of = whole.columns
    num_bad = whole.reasons.total()
    result: dict[str, Any] = {
        "num_samples": source.num_samples,
        "num_looked_at": num_looked,
        "num_usable": num_looked - num_bad,
        "num_bad": num_bad,
        "bad_by_reason": dict(whole.reasons.most_common()),
        "bad": whole.bad,
        "data_fingerprint": source.fingerprint,
        "image_bytes": {"total": int(of["image_bytes"].sum()), **spread(of["image_bytes"])},
        "width": spread(of["width"]),
        "height": spread(of["height"]),
        "short_side": spread(np.minimum(of["width"], of["height"])),
        "aspect": spread(of["width"] / np.maximum(of["height"], 1)),
        "formats": dict(whole.kinds.most_common()),
        "num_captions": int(of["words"].size),
        "captions_per_image": spread(of["captions"]),
        "distinct_captions": len(whole.texts),
        "caption_words": spread(of["words"]),
        "caption_tokens": spread(of["tokens"]),
        "captions_cut": int((of["tokens"] > context_length).sum()),
        "context_length": context_length,
        "scripts": dict(whole.scripts.most_common()),
        "duplicates": _duplicates(of, source),
    }
    if whole.labels:
        labelled = {k: n for k, n in whole.labels.items() if k != UNIQUE}
        result["labels"] = {
            "num_labelled": sum(labelled.values()),
            "num_distinct": len(labelled),
            "largest": max(labelled.values(), default=0),
        }
    return result


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
