"""Worst groups, and the other metrics by which CLIP benchmark and DataComp publish their tables."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import Tensor

from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError
from mmtrain.eval import evaluate_knn, evaluate_zero_shot
from mmtrain.eval.classify.classes import class_list
from mmtrain.eval.classify.classification import Verdicts
from mmtrain.eval.classify.groups import Grouped, Groups, ReadGroup, in_order
from mmtrain.eval.evaluators.zero_shot import ZeroShotConfig
from mmtrain.eval.intervals import count_intervals
from mmtrain.eval.scheduled import check_evaluation
from tests.data.shard_files import encoded, picture, write_shard
from tests.eval.tiny import make_encoder


def array(*values: object) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(values))
    return out.getvalue()


RECORDS = io.BytesIO()
np.save(RECORDS, np.array([(1, 2)], dtype=[("a", "i4"), ("b", "i4")]))


def their_worst_group(right_N: Tensor, group_N: Tensor, *, left_out: tuple[int, ...] = ()) -> float:
    """As WILDS' Accuracy.compute_group_wise has it: empty groups are none."""
    counts = torch.bincount(group_N)
    sums = torch.zeros(len(counts), dtype=torch.float64).scatter_add_(0, group_N, right_N.double())
    kept = [g for g in range(len(counts)) if counts[g] > 0 and g not in left_out]
    return min(float(sums[g] / counts[g]) for g in kept)


@pytest.mark.parametrize("seed", range(3))
def test_the_worst_group_is_wilds(seed: int) -> None:
    """Also by the first five, with a group left out and one that is empty."""
    generator = torch.Generator().manual_seed(seed)
    rank_N = torch.randint(0, 12, (300,), generator=generator)
    group_N = torch.randint(0, 6, (300,), generator=generator)
    group_N[group_N == 2] = 3
    for ignored in ((), ("5",), ("0", "3")):
        grouped = Grouped(
            groups=Groups(key="npy[0]", ignored=ignored), names=tuple(map(str, group_N.tolist()))
        )
        figures = grouped.figures(rank_N)
        for k in (1, 5):
            theirs = their_worst_group(rank_N < k, group_N, left_out=tuple(map(int, ignored)))
            assert figures[f"worst_group_top{k}"] == theirs
            worst = figures[f"worst_group_at_{k}"]
            assert worst not in ignored and figures[f"group_top{k}"][worst] == theirs
            ends = count_intervals(figures)[f"worst_group_top{k}"]
            assert ends.method == "wilson"
            assert ends.low <= theirs <= ends.high
        assert list(figures["group_count"]) == ["0", "1", "3", "4", "5"]
        assert sum(figures["group_count"].values()) == 300
        json.dumps(figures)


@pytest.mark.parametrize("seed", range(3))
def test_means_over_classes_are_scikit_learns(seed: int) -> None:
    """CLIP benchmark's mean_per_class_recall, and iWildCam's F1 over the classes that have images
    (wilds/common/metrics: f1_score(average="macro", labels=unique(y_true)))."""
    generator = torch.Generator().manual_seed(seed)
    class_N = torch.randint(0, 9, (200,), generator=generator)
    class_N[class_N == 4] = 5  # one without images, which is predicted all the same
    predicted_N = torch.where(
        torch.rand(200, generator=generator) < 0.5,
        class_N,
        torch.randint(0, 9, (200,), generator=generator),
    )
    ones_N = torch.ones(200)
    verdicts = Verdicts(
        class_N=class_N,
        predicted_N=predicted_N,
        rank_N=(class_N != predicted_N).long(),
        lead_N=ones_N,
        scale=1.0,
        loss=0.0,
        confidence_N=ones_N.double() / 2,
    )
    figures = verdicts.figures(class_list([f"c{n}" for n in range(9)]), per_class=False)
    true, said = class_N.numpy(), predicted_N.numpy()
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        recall = balanced_accuracy_score(true, said)
    assert figures["mean_class_top1"] == pytest.approx(recall, abs=1e-12)
    macro = f1_score(true, said, average="macro", labels=np.unique(true))
    assert figures["macro_f1"] == pytest.approx(macro, abs=1e-12)


@pytest.mark.parametrize(
    ("key", "members", "group"),
    [
        ("npy[0]", {"npy": array(3, 2010, 7)}, "3"),
        ("npy[2]", {"npy": array(3.0, 2010.0, 7.0)}, "7"),
        ("npy", {"npy": array(4)}, "4"),
        ("npy", {"npy": array("north")}, "north"),
        ("npy", {"npy": array("Köln".encode())}, "Köln"),
        ("region", {"region": b" Africa\n"}, "Africa"),
        ("region", {"json": b'{"region": "Asia"}'}, "Asia"),
        ("income", {"json": b'{"income": 2}'}, "2"),
        ("where[1]", {"json": b'{"where": ["Asia", "Japan"]}'}, "Japan"),
    ],
)
def test_groups_of_every_form(key: str, members: dict[str, bytes], group: str) -> None:
    assert ReadGroup.of(key)(members) == group


@pytest.mark.parametrize(
    ("key", "members", "told"),
    [
        (
            "npy",
            {"npy": array(3, 2010)},
            r"has 2 values; name one of them as group_key = npy\[0\] to",
        ),
        ("npy[2]", {"npy": array(3, 2010)}, r"has 2 values; name one .* to npy\[1\]"),
        ("npy[0]", {"npy": array(3)[:-4]}, r"its .npy cannot be read"),
        ("region[0]", {"region": b"Asia"}, "its region is one value; set group_key = region"),
        ("region", {"json": b'{"region": null}'}, "names no group"),
        ("region", {"json": b'{"region": " "}'}, "names no group"),
        ("region", {"json": b'{"region": NaN}'}, "names no group"),
        ("npy[1]", {"npy": array(1, np.nan)}, "names no group"),
        ("npy[0]", {"npy": array()}, "names no group"),
        ("npy", {"npy": array(())}, "names no group"),
        ("npy", {"npy": RECORDS.getvalue()}, "names no group"),
        ("region", {"json": b'{"place": 1}'}, "no field 'region'"),
        ("npy[0]", {"cls": b"1"}, "neither a .npy nor a .json"),
    ],
)
def test_what_is_no_group_is_one_line(key: str, members: dict[str, bytes], told: str) -> None:
    with pytest.raises(SampleError, match=told) as caught:
        ReadGroup.of(key)(members)
    assert len(str(caught.value).splitlines()) == 1


def test_groups_of_numbers_are_in_their_order() -> None:
    assert in_order(["10", "2", "-1", "2"]) == ["-1", "2", "10"]
    assert in_order(["10", "9" * 5000]) == ["10", "9" * 5000]


def write_wilds(path: Path, count: int = 9) -> str:
    """Shards of DataComp's form: three classes, regions 0 and 4 in an array."""
    samples = [
        (
            f"s{number}",
            {
                "cls": str(number % 3),
                "npy": array(4 * (number % 2), 2016, number % 3),
                "png": encoded(picture((20, 18), seed=number), "PNG"),
            },
        )
        for number in range(count)
    ]
    return str(write_shard(path, samples))


def test_groups_are_tried_before_a_run_begins(tmp_path: Path) -> None:
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(["red fox", "owl", "hare"]))
    one = ZeroShotConfig(
        name="x",
        data=write_wilds(tmp_path / "0.tar"),
        classes=str(classes),
        label_key="cls",
        group_key="npy[0]",
    )
    preprocess = make_encoder().preprocess
    check_evaluation(one, preprocess)
    with pytest.raises(UsageError, match=r"name one of them as group_key = npy\[0\] to npy\[2\]"):
        check_evaluation(replace(one, group_key="npy[9]"), preprocess)


def test_an_evaluation_tells_its_worst_group(tmp_path: Path) -> None:
    data = write_wilds(tmp_path / "0.tar")
    given = {"data": data, "classes": ["red fox", "owl", "hare"], "label_key": "cls"}
    found = evaluate_zero_shot(make_encoder(), **given, groups=Groups(key="npy[0]"))
    by_group: dict[str, list[float]] = {"0": [], "4": []}
    for number, outcome in enumerate(found.outcomes):
        by_group[str(4 * (number % 2))].append(outcome.score)
        assert outcome.kinds["group"] == str(4 * (number % 2))
    means = {name: sum(scores) / len(scores) for name, scores in by_group.items()}
    assert found.figures["group_top1"] == means
    assert found.figures["worst_group_top1"] == min(means.values())
    plain = evaluate_zero_shot(make_encoder(), **given).figures
    assert plain["top1"] == found.figures["top1"] and "worst_group_top1" not in plain
    with pytest.raises(UsageError, match=r"no sample is of '9'; the groups are 0, 4"):
        evaluate_zero_shot(make_encoder(), **given, groups=Groups(key="npy[0]", ignored=("9",)))
    with pytest.raises(UsageError, match="names every group"):
        evaluate_zero_shot(make_encoder(), **given, groups=Groups(key="npy[0]", ignored=("4", "0")))
    with pytest.raises(UsageError, match=r"group_key: sample s0 .*: it has neither a .country"):
        evaluate_zero_shot(make_encoder(), **given, groups=Groups(key="country"))
    config = ZeroShotConfig(name="x", data=data, ignored_groups=("4",))
    with pytest.raises(UsageError, match="no effect without group_key"):
        config.open()
    sets = {"train": data, "test": data, "classes": given["classes"], "label_key": "cls"}
    near = evaluate_knn(make_encoder(), **sets, neighbours=1, groups=Groups(key="npy[0]"))
    assert near.figures["worst_group_top1"] == 1
