"""A model of a suite: what it is, and how its evaluations ask it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

import mmtrain
from mmtrain.data.fingerprint import ids_fingerprint
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.features.store import FeatureStore
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.together import in_a_line
from mmtrain.models.clip import Clip
from mmtrain.models.fingerprint import weights_fingerprint
from mmtrain.models.flops import clip_flops
from mmtrain.ranks import on_every_rank
from mmtrain.settings.decode import encode
from mmtrain.suite.config import DATA_KEYS, file_keys
from mmtrain.suite.folder import digest, file_name

Sort = Literal["towers", "images", "answers"]
"""What an evaluation asks: two towers, the image tower of a model that answers, or its answers."""
Load = Callable[[Sort], Encoder | Answerer]
"""Reads the model from disk, on this rank alone."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a model is."""

    parameters: int
    """Numbers in its weights."""
    gflops: float | None
    """Of one image and one text, forward. None: of a model that answers, by its questions."""


class Judged:
    """A model, read when the first evaluation asks for it.

    Args:
        name: as the table has it.
        answers: whether it answers questions; else it matches images and texts.
        load: reads it.
        store: where features of images are kept.
    """

    def __init__(self, name: str, *, answers: bool, load: Load, store: FeatureStore) -> None:
        self.name = name
        self._answers, self._load, self._store = answers, load, store
        self._held: dict[Sort, Encoder | Answerer] = {}
        self._runs: dict[Sort, dict[str, Any]] = {}
        self._failed: dict[Sort, str] = {}

    def asked_by(self, one: Evaluator) -> Encoder | Answerer:
        """The model as an evaluation wants it.

        Raises:
            UsageError: on every rank: it cannot be read, or has not what the evaluation asks for.
        """
        sort = self._sort(one)
        if sort in self._failed:
            raise UsageError(self._failed[sort])
        if sort not in self._held:
            try:
                found = on_every_rank(lambda: self._load(sort))
            except (UsageError, OSError, ValueError, RuntimeError) as error:
                self._failed[sort] = in_a_line(error)
                raise
            self._held[sort] = self._store.serve(found) if isinstance(found, Encoder) else found
            self._runs[sort] = _run_of(found)
        return self._held[sort]

    def folder(self, one: Evaluator) -> str:
        """Of its results: named by its weights and how they are run, so that other models beside
        it change nothing."""
        self.asked_by(one)
        return f"{file_name(self.name)[-60:]}-{digest(self._runs[self._sort(one)])[:10]}"

    def key(self, one: Evaluator, inputs: Mapping[str, Any]) -> str:
        """Changes when the result of an evaluation may: with the model, the data, an option or a
        version.

        Args:
            one: the evaluation.
            inputs: what it reads, as `identity` tells it.
        """
        asked, given = self.asked_by(one), encode(one)
        # Where a file is changes nothing; what it holds is among the inputs.
        left_out = {"name", *DATA_KEYS, *file_keys(one)}
        told = {
            "kind": type(one).__name__,
            "options": {k: v for k, v in given.items() if k not in left_out},
            "inputs": inputs,
            "run": self._runs[self._sort(one)],
            "versions": [mmtrain.__version__, torch.__version__],
        }
        if one.judges == "towers" and one.reads_texts:
            told["texts"] = ids_fingerprint(asked.tokenizer.encode)
        return digest(told)

    def size(self) -> Size | None:
        """Of what was read; None: nothing was."""
        if not self._held:
            return None
        model: Any = next(iter(self._held.values())).model
        counted = clip_flops(model.config) if isinstance(model, Clip) else None
        return Size(
            parameters=sum(each.numel() for each in model.parameters()),
            gflops=None if counted is None else (counted.image + counted.text) / 1e9,
        )

    def _sort(self, one: Evaluator) -> Sort:
        if one.judges == "answers":
            return "answers"
        return "images" if self._answers and not one.reads_texts else "towers"


def _run_of(asked: Encoder | Answerer) -> dict[str, Any]:
    """The weights, and what else their outputs depend on."""
    return {
        "weights": weights_fingerprint(asked.model),
        "preprocess": encode(asked.preprocess),
        "precision": asked.precision,
        "batch_size": asked.batch_size,
    }
