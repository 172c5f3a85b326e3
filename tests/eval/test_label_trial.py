"""Labels are held against the classes before a run, of as few samples as will do."""

import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.errors import UsageError
from mmtrain.eval.classify.classes import SUBSETS, class_list, subset_places
from mmtrain.eval.classify.layouts import LabelledInputs
from mmtrain.eval.classify.subsets import choose, count_others, may_count_others
from mmtrain.eval.evaluators.knn import KnnConfig
from mmtrain.eval.evaluators.zero_shot import ZeroShotConfig
from mmtrain.eval.label_trial import NUM_LABELS, NUM_REMOTE, try_labels
from mmtrain.eval.scheduled import check_evaluation
from tests.eval.classify.test_subsets import WRONG, write_labelled

IMAGENET = class_list("imagenet")


class Labels:
    """A SampleSource of labels alone, which counts what is read."""

    def __init__(self, labels: Sequence[int]) -> None:
        self.labels, self.num_samples, self.shard_sizes = labels, len(labels), (len(labels),)
        self.fingerprint = "none"
        self.reads: list[int] = []

    def key(self, sample: int) -> str:
        return f"s{sample}"

    def place(self, sample: int) -> str:
        return "memory"

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        self.reads.append(sample)
        return {"cls": str(self.labels[sample]).encode()}


def tried(classes: Any = IMAGENET, *, is_remote: bool = False, **sets: Sequence[int]) -> int:
    """How many labels are read of the last set."""
    sources: dict[str, Any] = {name: Labels(labels) for name, labels in sets.items()}
    inputs = LabelledInputs(sources=sources, classes=classes, label_key="cls", templates=None)
    *others, tested = sets
    try_labels(inputs, tested=tested, trained=others[0] if others else None, is_remote=is_remote)
    return len(sources[tested].reads)


@pytest.mark.parametrize("what", WRONG)
def test_what_an_evaluation_refuses_is_refused_before(what: str, tmp_path: Path) -> None:
    """In the same words, before the first step."""
    labels, names, told = WRONG[what]
    data = str(write_labelled(tmp_path / "wds", labels[:400], names=names))
    one = ZeroShotConfig(name="mine", data=data)
    with pytest.raises(UsageError, match=f"^eval mine: .*{told}") as caught:
        check_evaluation(one, PreprocessConfig(image_size=16))
    assert len(str(caught.value).splitlines()) == 1


def test_a_set_that_fits_is_cleared_by_a_part_of_it() -> None:
    """However its samples are sorted, and whatever few of them say."""
    by_class = [place // 20 for place in range(20_000)]
    mostly_low = [0, 1] * 9_900 + list(range(0, 1000, 5))
    for labels in (by_class, by_class[::-1], [place % 1000 for place in range(20_000)]):
        assert tried(data=labels) == NUM_LABELS
    assert tried(data=mostly_low) < len(mostly_low)
    assert tried(data=by_class, is_remote=True) == NUM_REMOTE
    assert tried(choose(IMAGENET, "all"), data=[0, 1] * 9_900) == NUM_LABELS


@pytest.mark.parametrize("sets", [{"data": 5_000}, {"train": 5_000, "test": 300}])
def test_a_label_that_is_no_class_is_found_anywhere(sets: dict[str, int]) -> None:
    """One in a hundred, of any set."""
    few = class_list([f"class {number}" for number in range(100)])
    (name, count), *others = sets.items()  # the others fit
    labels: dict[str, Any] = {other: list(range(100)) * 3 for other, _ in others}
    labels = {name: [place % 101 for place in range(count)]} | labels
    with pytest.raises(UsageError, match=f"^{name}: sample s.* '100' is not among the classes"):
        tried(few, **labels)


def test_a_classifier_that_knows_no_more_is_not_refused() -> None:
    """As `refuse_other_count` has it: what votes has the same ten classes, or all thousand."""
    ten = list(range(10)) * 20
    tried(train=ten, test=ten)
    with pytest.raises(UsageError, match="0 to 9 alone"):
        tried(train=list(range(1000)), test=ten)


def test_a_set_that_may_be_refused_is_never_cleared() -> None:
    """Of sets drawn at random, by any part of their labels."""
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        num = draw.choice((6, 10, 200, 1000))
        known = class_list([f"{place}" for place in range(num)])
        pools = [range(draw.randint(2, num)), subset_places(draw.choice(SUBSETS))]
        pool = [one for one in draw.choice(pools) if one < num] or [0]
        present = draw.sample(pool, draw.choice((len(pool), draw.randint(1, len(pool)))))
        if count_others(known, set(present)):
            refused += 1
            for most in (0, 1, len(present) // 2, len(present)):
                assert may_count_others(known, set(present[:most]))
    assert refused > 50


def test_knn_and_probe_are_tried_alike(tmp_path: Path) -> None:
    train = write_labelled(tmp_path / "t", [str(7 * n % 1000) for n in range(40)], names=None)
    test = write_labelled(tmp_path / "s", [str(n % 50) for n in range(100)], names=None)
    one = KnnConfig(name="k", train=str(train), test=str(test), classes="imagenet", label_key="cls")
    with pytest.raises(UsageError, match=r"^eval k: the labels are 0 to 49 alone"):
        check_evaluation(one, PreprocessConfig(image_size=16))
