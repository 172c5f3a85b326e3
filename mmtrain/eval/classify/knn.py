"""How much the nearest neighbours can tell from frozen image features."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmtrain.data.sources.source import Data
from mmtrain.errors import UsageError
from mmtrain.eval.classify.classes import ClassList, class_list
from mmtrain.eval.classify.groups import Groups
from mmtrain.eval.classify.labelled import LabelledSet, encode_labelled, judge, origin
from mmtrain.eval.classify.subsets import choose, refuse_other_count
from mmtrain.eval.encode import Encoder
from mmtrain.eval.result import EvalResult


def evaluate_knn(
    encoder: Encoder,
    *,
    train: Data,
    test: Data,
    classes: Path | str | ClassList | Sequence[str],
    subset: str | None = None,
    label_key: str = "concept",
    neighbours: int = 20,
    temperature: float | None = 0.07,
    num_examples: int = 10,
    per_class: bool = False,
    groups: Groups | None = None,
    index_dir: str | None = None,
) -> EvalResult:
    """Accuracy of a vote of the nearest training images by cosine, the same on every rank.

    Wu et al. 2018, arXiv:1805.01978, Sec. 3.4. Of equally many votes the class that is first in the
    list wins. A class without a vote is in the last place, so that it is not among the first five
    unless all classes are: DINO's evaluation and scikit-learn fill these up with such classes.

    Args:
        encoder: the model and the ranks that share the work.
        train: the images that vote.
        test: what the figures are about.
        classes, subset: as of `evaluate_zero_shot`.
        label_key: where a sample's class id is: a member such as `cls`, or a field of its .json.
        neighbours: how many vote.
        temperature: a vote weighs exp(cosine / temperature). None: all weigh the same.
        num_examples: how many of the best and of the worst images to keep.
        per_class, groups: as of `evaluate_zero_shot`.
        index_dir: where the shards' indexes are kept.

    Raises:
        UsageError: on every rank: an unreadable sample, a label that is no class, fewer training
            images than neighbours.
    """
    known = choose(class_list(classes), subset)
    fitted, tested = (
        encode_labelled(encoder, data, known, label_key, index_dir) for data in (train, test)
    )
    refuse_other_count(known, tested.class_N, trained_N=fitted.class_N)
    if not 1 <= neighbours <= len(fitted.class_N):
        raise UsageError(
            f"neighbours = {neighbours} must be 1 to {len(fitted.class_N)}, the training images"
        )
    if temperature is not None and not temperature > 0:
        raise UsageError(f"temperature = {temperature} must be above 0; or none, for equal votes")

    def votes(features_BE: Tensor) -> Tensor:
        return count_votes(
            features_BE,
            fitted,
            num_classes=len(known.ids),
            neighbours=neighbours,
            temperature=temperature,
        )

    more = {"method": "kNN", "neighbours": neighbours, "temperature": temperature}
    more |= {"num_train": len(fitted.class_N)}
    return judge(
        encoder,
        tested,
        votes,
        known,
        width=len(fitted.class_N),
        num_examples=num_examples,
        per_class=per_class,
        groups=groups,
        unnamed=0.0,
        more=more | origin(encoder, train=fitted, test=tested, label_key=label_key),
    )


def count_votes(
    features_BE: Tensor,
    fitted: LabelledSet,
    *,
    num_classes: int,
    neighbours: int,
    temperature: float | None,
) -> Tensor:
    """The weight of the votes for each class, a share of all: float32 [B, M]."""
    cosine_BK, index_BK = (features_BE @ fitted.features_NE.T).topk(neighbours)
    if temperature is None:
        weight_BK = torch.full_like(cosine_BK, 1 / neighbours)
    else:
        weight_BK = (cosine_BK / temperature).softmax(1)
    votes_BM = features_BE.new_zeros(len(features_BE), num_classes)
    return votes_BM.scatter_add_(1, fitted.class_N[index_BK], weight_BK)
