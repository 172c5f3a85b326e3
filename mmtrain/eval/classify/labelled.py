"""Sets of images with their classes, as features on every rank, and a classifier's verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import Data, SampleSource
from mmtrain.eval.classify.classes import ClassList
from mmtrain.eval.classify.classification import ClassTable, ReadClass, classification_result
from mmtrain.eval.classify.groups import Groups, read_groups
from mmtrain.eval.encode import Encoder
from mmtrain.eval.features.gathered import encode_set
from mmtrain.eval.outcomes import name_order, sample_names
from mmtrain.eval.result import EvalResult, provenance
from mmtrain.eval.scores import own_blocks


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """A set's features and classes, on every rank."""

    source: SampleSource
    """Where it came from."""
    features_NE: Tensor
    """Unit norm, float32, on the device."""
    class_N: Tensor
    """int64, on the device."""
    sample_N: Tensor
    """int64, the number of each in its source, on the device. Samples stand in the order of their
    names, so that what is fitted to them does not depend on the order of the data."""

    def rows(self, kept_N: Tensor) -> "LabelledSet":
        """Some of it."""
        return LabelledSet(
            source=self.source,
            features_NE=self.features_NE[kept_N],
            class_N=self.class_N[kept_N],
            sample_N=self.sample_N[kept_N],
        )

    def __add__(self, other: "LabelledSet") -> "LabelledSet":
        return LabelledSet(
            source=self.source,
            features_NE=torch.cat([self.features_NE, other.features_NE]),
            class_N=torch.cat([self.class_N, other.class_N]),
            sample_N=torch.cat([self.sample_N, other.sample_N]),
        )


def encode_labelled(
    encoder: Encoder, data: Data, known: ClassList, label_key: str, index_dir: str | None
) -> LabelledSet:
    """The features and classes of all samples.

    Raises:
        UsageError: on every rank: an unreadable sample, a label that is no class.
    """
    source = open_source(data, index_dir=index_dir, key="data")
    features_NE, classes = encode_set(
        encoder, source, ReadClass.of(known, label_key), names=(label_key,)
    )
    order = name_order(sample_names(source, range(source.num_samples)))
    sample_N = torch.tensor(order, device=encoder.device)
    class_N = torch.tensor(classes, dtype=torch.int64, device=encoder.device)
    return LabelledSet(
        source=source,
        features_NE=features_NE[sample_N],
        class_N=class_N[sample_N],
        sample_N=sample_N,
    )


def judge(
    encoder: Encoder,
    tested: LabelledSet,
    score: Callable[[Tensor], Tensor],
    known: ClassList,
    *,
    width: int,
    num_examples: int,
    per_class: bool,
    groups: Groups | None,
    more: dict[str, Any],
    unnamed: float = -math.inf,
) -> EvalResult:
    """The result of a classifier of features, the ranks sharing out the rows.

    Args:
        encoder: the ranks.
        tested: what the figures are about.
        score: [B, E] -> float32 [B, M], the higher the likelier.
        known: the M classes.
        width: numbers that a row takes while it is scored.
        groups: which samples make a group.
        num_examples, per_class, more: of `classification_result`.
        unnamed: as `ClassTable.fill` takes it.
    """
    grouped = read_groups(encoder, tested.source, groups)
    table = ClassTable(len(tested.class_N), encoder.device)
    for rows in own_blocks(encoder.group, len(tested.class_N), width):
        scores_BM, class_B = score(tested.features_NE[rows]), tested.class_N[rows]
        table.fill(tested.sample_N[rows], scores_BM, class_B, unnamed=unnamed)
    return classification_result(
        encoder,
        tested.source,
        table.gather(encoder),
        known,
        num_examples=num_examples,
        per_class=per_class,
        grouped=grouped,
        more=more,
    )


def origin(
    encoder: Encoder, *, train: LabelledSet, test: LabelledSet, label_key: str
) -> dict[str, Any]:
    """What a result tells of where it came from."""
    return {
        "label_key": label_key,
        "train_fingerprint": train.source.fingerprint,
        **provenance(encoder, test.source),
    }
