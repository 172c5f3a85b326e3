"""Figures of a data set: what its images and captions are like, what is there twice, or bad."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmtrain.data.members import UNIQUE, label_of
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.survey.duplicates import (
    file_hash,
    groups_of_files,
    groups_of_pictures,
    picture_hash,
)
from mmtrain.data.survey.piece import COLUMNS, Piece, columns_of, joined
from mmtrain.data.survey.scripts import script_of
from mmtrain.data.survey.seen import Seen
from mmtrain.data.survey.seen_dialogue import IMAGES, words_of
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
        look: reads a sample.
        label_key: field of the .json that identifies a concept; None: none is counted.
        tokenizer: counts tokens; its context should be longer than any caption.
        progress: told how many samples were looked at, of how many.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        numbers: np.ndarray,
        look: Callable[[int], Seen],
        label_key: str | None,
        tokenizer: Tokenizer,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.source, self.numbers = source, numbers
        self._look = look
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
                seen = self._look(sample)
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
        for image, one in enumerate(seen.pictures):
            piece.kinds[one.kind] += 1
            rows["number"].append(seen.number)
            rows["image"].append(image)
            rows["image_bytes"].append(len(one.image))
            rows["width"].append(one.pixels_HWC.shape[1])
            rows["height"].append(one.pixels_HWC.shape[0])
            rows["captions"].append(len(seen.captions))
            rows["file_hash"].append(file_hash(one.image))
            rows["picture_hash"].append(picture_hash(one.pixels_HWC))
        if self._label_key is not None:
            rows["label"].append(label_of(seen.fields.get(self._label_key)))
        if not seen.captions:
            return
        texts = [words_of(text) for text in seen.captions] if seen.roles else seen.captions
        lengths = self._tokenizer.encode(texts)[1].tolist()
        rows["words"] += [len(text.split()) for text in texts]
        rows["tokens"] += lengths
        piece.scripts.update(map(script_of, texts))
        rows["text_hash"] += [file_hash(text.encode("utf-8", "replace")) for text in texts]
        if seen.roles:
            rows["turns"].append(len(seen.roles))
            rows["images"].append(seen.fields[IMAGES])
            rows["said"].append(sum(lengths))


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
    if of["turns"].size:
        # The texts are turns, of which a model keeps none by itself, and of a dialogue.
        for name in ("captions_per_image", "captions_cut", "context_length"):
            del result[name]
        result["dialogues"] = {
            "num": int(of["turns"].size),
            **{name: spread(of[name]) for name in ("turns", "images")},
            "tokens": spread(of["said"]),
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
        "same_file": _told(files, of, source),
        "same_picture": _told(pictures, of, source),
    }


def _told(
    groups: Sequence[np.ndarray], of: Mapping[str, np.ndarray], source: SampleSource
) -> dict[str, Any]:
    """How many images are there beside a first one, and the largest groups by key."""
    largest = sorted(groups, key=lambda each: (-each.size, each[0]))[:_MAX_GROUPS]
    number_N, image_N = of["number"], of["image"]
    named = [
        (each.size, number_N[each[:_MAX_KEYS]].tolist(), image_N[each[:_MAX_KEYS]].tolist())
        for each in largest
    ]
    return {
        "num_groups": len(groups),
        "num_superfluous": sum(each.size - 1 for each in groups),
        "largest": [
            {"num": size, "samples": samples, "keys": [source.key(n) for n in samples]}
            | ({"images": images} if of["turns"].size else {})
            for size, samples, images in named
        ],
    }
