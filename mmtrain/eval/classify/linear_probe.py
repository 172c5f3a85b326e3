"""How much a linear classifier can tell from frozen image features."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmtrain.data.sources.source import Data
from mmtrain.errors import UsageError
from mmtrain.eval.classify.classes import ClassList, class_list
from mmtrain.eval.classify.groups import Groups
from mmtrain.eval.classify.labelled import LabelledSet, encode_labelled, judge, origin
from mmtrain.eval.classify.logistic import fit_logistic, search_strength, try_strengths
from mmtrain.eval.classify.subsets import choose, refuse_other_count
from mmtrain.eval.encode import Encoder
from mmtrain.eval.result import EvalResult

HELD_OUT = 10
"""One of so many training samples is held out to choose on, where no validation set is named."""


def evaluate_linear_probe(
    encoder: Encoder,
    *,
    train: Data,
    test: Data,
    classes: Path | str | ClassList | Sequence[str],
    subset: str | None = None,
    validation: Data | None = None,
    label_key: str = "concept",
    strengths: Sequence[float] | None = None,
    num_examples: int = 10,
    per_class: bool = False,
    groups: Groups | None = None,
    index_dir: str | None = None,
) -> EvalResult:
    """Accuracy of a logistic regression on the unit-norm image features, the same on every rank.

    Radford et al. 2021, arXiv:2103.00020, App. A.3: the regularisation is chosen on the validation
    set, then the classifier is fitted to training and validation set together.

    Args:
        encoder: the model and the ranks that share the work.
        train: what is fitted.
        test: what the figures are about.
        classes, subset: as of `evaluate_zero_shot`.
        validation: what the regularisation is chosen on; None: one of ten training samples, evenly
            over the classes.
        label_key: where a sample's class id is: a member such as `cls`, or a field of its .json.
        strengths: the values of C to choose among; one is taken as it is. None: a search.
        num_examples: how many of the best and of the worst images to keep.
        per_class, groups: as of `evaluate_zero_shot`.
        index_dir: where the shards' indexes are kept.

    Raises:
        UsageError: on every rank: an unreadable sample, a label that is no class, too little data.
    """
    if strengths is not None and not (strengths and all(0 < each < 1e300 for each in strengths)):
        raise UsageError(f"strengths = {list(strengths)} must be positive numbers, at least one")
    known = choose(class_list(classes), subset)
    fitted, tested = (
        encode_labelled(encoder, data, known, label_key, index_dir) for data in (train, test)
    )
    refuse_other_count(known, tested.class_N, trained_N=fitted.class_N)
    kept, chosen_on = fitted, None
    if validation is None and holds_out(strengths):
        kept, chosen_on = hold_out(fitted)
    elif validation is not None:
        chosen_on = encode_labelled(encoder, validation, known, label_key, index_dir)
        fitted = fitted + chosen_on

    def score(strength: float) -> float:
        assert chosen_on is not None, "there is something to choose"
        return _accuracy(kept, chosen_on, len(known.ids), strength)

    best, tried = _chosen(score, strengths, encoder)
    classifier = fit_logistic(
        fitted.features_NE, fitted.class_N, num_classes=len(known.ids), strength=best
    )
    more: dict[str, Any] = {
        "method": "linear probe",
        "strength": best,
        "tried": [{"strength": each, "top1": value} for each, value in tried.items()],
        "num_train": len(fitted.class_N),
        "num_validation": len(chosen_on.class_N) if tried and chosen_on is not None else 0,
    }
    return judge(
        encoder,
        tested,
        classifier.scores,
        known,
        width=len(known.ids),
        num_examples=num_examples,
        per_class=per_class,
        groups=groups,
        more=more | origin(encoder, train=fitted, test=tested, label_key=label_key),
    )


def _chosen(
    score: Callable[[float], float], strengths: Sequence[float] | None, encoder: Encoder
) -> tuple[float, dict[float, float]]:
    """The best strength, and what was seen of each that was tried."""
    if strengths is None:
        return search_strength(score, device=encoder.device, group=encoder.group)
    if len(strengths) == 1:
        return strengths[0], {}
    tried = try_strengths(strengths, score, device=encoder.device, group=encoder.group)
    return min(tried, key=lambda strength: (-tried[strength], strength)), tried


def holds_out(strengths: Sequence[float] | None) -> bool:
    """Whether there is a strength to choose, for which samples are kept back."""
    return strengths is None or len(strengths) > 1


def hold_out(fitted: LabelledSet) -> tuple[LabelledSet, LabelledSet]:
    """Training samples without, and only, every tenth in the order of the classes.

    Raises:
        UsageError: there are fewer than ten.
    """
    check_enough_to_hold_out(len(fitted.class_N))
    order_N = fitted.class_N.argsort(stable=True)
    held_N = torch.zeros(len(order_N), dtype=torch.bool, device=order_N.device)
    held_N[order_N[HELD_OUT - 1 :: HELD_OUT]] = True
    return fitted.rows(~held_N), fitted.rows(held_N)


def check_enough_to_hold_out(num_samples: int) -> None:
    """Refuse a training set of which nothing can be held out.

    Raises:
        UsageError: it has fewer than ten samples.
    """
    if num_samples < HELD_OUT:
        raise UsageError(
            f"train has {num_samples} samples, too few to hold some out; name a validation set or "
            "one strength"
        )


def _accuracy(fitted: LabelledSet, judged: LabelledSet, num_classes: int, strength: float) -> float:
    classifier = fit_logistic(
        fitted.features_NE, fitted.class_N, num_classes=num_classes, strength=strength
    )
    right = classifier.scores(judged.features_NE).argmax(1) == judged.class_N
    return int(right.sum()) / len(right)
