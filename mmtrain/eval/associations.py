"""A word and several images: those that lie nearest to it against those that people chose."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.sources.table import TABLE_SUFFIXES, Table
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder, encode_texts
from mmtrain.eval.features.gathered import encode_set
from mmtrain.eval.intervals import INTERVALS, bootstrap_interval
from mmtrain.eval.outcomes import Outcome, told_apart
from mmtrain.eval.result import EvalResult, provenance
from mmtrain.files import parse_json

SIZES = {"jaccard_5_6": (5, 6), "jaccard_10_12": (10, 12)}
"""Figures of their own by the number of candidates, both ends counted; DataComp's is the second."""


@dataclass(frozen=True, kw_only=True)
class Association:
    """A word, images, and which of them go with it."""

    id: str
    """Of the row."""
    cue: str
    """The word."""
    candidates: tuple[str, ...]
    """Names of the images."""
    images: tuple[int, ...]
    """Their numbers in the source."""
    wanted: tuple[int, ...]
    """Places among the candidates of those that go with it."""

    @property
    def prompt(self) -> str:
        """As WinoGAViL's and DataComp's code ask: the word in small letters behind its article."""
        word = self.cue.lower()
        return f"{'An' if word[0] in 'aeiou' else 'A'} {word}"


def read_associations(path: Path, source: SampleSource) -> tuple[Association, ...]:
    """The rows of a table, whose images are those of the source.

    Raises:
        UsageError: the file cannot be read or a row is wrong; an image is missing, or two have its
            name.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise UsageError(f"cues = {path} must end in {' or '.join(TABLE_SUFFIXES)}")
    table = Table(path, column="cue", option=None, key="cues")
    numbers: dict[str, list[int]] = {}
    for number in range(source.num_samples):
        numbers.setdefault(PurePosixPath(source.key(number)).stem, []).append(number)
        numbers.setdefault(source.key(number), []).append(number)
    return tuple(_association(table, place, numbers) for place in range(table.num_rows))


def _association(table: Table, place: int, numbers: dict[str, list[int]]) -> Association:
    told = table.place(place)
    try:
        row = table.row(place)
    except SampleError as error:
        raise UsageError(f"{told}: {error.told}") from error
    cue = row.get("cue")
    if not isinstance(cue, str) or not cue.strip():
        raise UsageError(f"{told} has no cue")
    candidates, wanted = (_names(row, key, told) for key in ("candidates", "associations"))
    if strange := [name for name in wanted if name not in candidates]:
        raise UsageError(f"{told}: the association {strange[0]!r} is none of the candidates")
    images: list[int] = []
    for name in candidates:
        found = sorted(set(numbers.get(name, ())))
        if len(found) != 1:
            many = f"{len(found)} images are" if found else "no image is"
            raise UsageError(f"{told}: {many} called {name!r}; name a folder that has each once")
        images.append(found[0])
    return Association(
        id=str(place if row.get("ID") is None else row["ID"]),
        cue=cue.strip(),
        candidates=candidates,
        images=tuple(images),
        wanted=tuple(number for number, name in enumerate(candidates) if name in wanted),
    )


def _names(row: dict[str, Any], key: str, told: str) -> tuple[str, ...]:
    """A list of names; in a table it is written as JSON."""
    value = row.get(key)
    try:
        names = parse_json(value) if isinstance(value, str) else value
    except ValueError:
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
        raise UsageError(f'{told}: {key} is no list of names of images; write ["a", "b"]')
    if len(set(names)) < len(names):
        raise UsageError(f"{told}: {key} names an image twice")
    return tuple(names)


@torch.no_grad()
def evaluate_associations(
    encoder: Encoder, source: SampleSource, asked: Sequence[Association]
) -> EvalResult:
    """Mean Jaccard index of the chosen and the right images, the same on every rank.

    As many images are chosen as go with the word, those nearest to it; of equal ones the first. The
    index is |chosen and right| / |chosen or right|: Bitton et al. 2022 (WinoGAViL),
    arXiv:2207.12576, Sec. 4; DataComp, arXiv:2304.14108, App. N, takes the mean over instances of
    10 or 12 candidates (`jaccard_10_12`).

    Args:
        encoder: the model and the ranks that share the work.
        source: the images.
        asked: the words.

    Raises:
        UsageError: on every rank: an unreadable image, a model that gives no numbers.
    """
    images_NE, _ = encode_set(encoder, source, _nothing, names=())
    prompts = list(dict.fromkeys(one.prompt for one in asked))
    texts_UE = encode_texts(encoder, prompts)
    number = {prompt: place for place, prompt in enumerate(prompts)}
    scores: list[float] = []
    chosen: list[list[int]] = []
    for one in asked:
        rows = torch.tensor(one.images, device=images_NE.device)
        score_K = images_NE[rows] @ texts_UE[number[one.prompt]]
        first = score_K.argsort(descending=True, stable=True)[: len(one.wanted)].tolist()
        chosen.append(sorted(first))
        scores.append(len(set(first) & set(one.wanted)) / len(set(first) | set(one.wanted)))
    figures = {
        "jaccard": sum(scores) / len(scores),
        **_by_size(asked, scores),
        "chance": sum(_chance(len(one.images), len(one.wanted)) for one in asked) / len(asked),
        "num_samples": len(asked),
        "num_images": len({image for one in asked for image in one.images}),
        **provenance(encoder, source),
    }
    return EvalResult(figures=figures, best=[], worst=[], outcomes=_outcomes(asked, scores, chosen))


def _nothing(_: Any) -> None:
    return None


def _by_size(asked: Sequence[Association], scores: Sequence[float]) -> dict[str, Any]:
    """Of the instances with few and with many candidates, where there are any."""
    sets = [frozenset(one.images) for one in asked]
    boards = {board: number for number, board in enumerate(dict.fromkeys(sets))}
    figures: dict[str, Any] = {INTERVALS: {}}
    for name, (low, high) in SIZES.items():
        kept = [n for n, one in enumerate(asked) if low <= len(one.images) <= high]
        if not kept:
            continue
        score_N = np.array([scores[n] for n in kept])
        figures[name] = float(score_N.mean())
        ends = bootstrap_interval(score_N, np.array([boards[sets[n]] for n in kept]))
        figures[INTERVALS] |= {} if ends is None else {name: ends}
    return figures


def _chance(num: int, right: int) -> float:
    """Of a choice of `right` of `num` images at random."""
    total = comb(num, right)
    return sum(
        comb(right, hit) * comb(num - right, right - hit) / total * hit / (2 * right - hit)
        for hit in range(max(0, 2 * right - num), right + 1)
    )


def _outcomes(
    asked: Sequence[Association], scores: Sequence[float], chosen: Sequence[Sequence[int]]
) -> tuple[Outcome, ...]:
    """Words about the same images are not independent of each other."""
    ids = told_apart([one.id for one in asked])
    return tuple(
        Outcome(
            metric="jaccard",
            id=id,
            image=", ".join(sorted(one.candidates)),
            score=score,
            kinds={"candidates": str(len(one.images))},
            asked=one.cue,
            wanted=", ".join(one.candidates[place] for place in one.wanted),
            said=", ".join(one.candidates[place] for place in said),
        )
        for id, one, score, said in zip(ids, asked, scores, chosen, strict=True)
    )
