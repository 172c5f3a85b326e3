import json
from pathlib import Path

import pytest
import torch

from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError
from mmtrain.eval import evaluate_zero_shot
from mmtrain.eval.classify.classification import ReadClass
from mmtrain.eval.classify.prompts import TEMPLATES, load_templates
from tests.data.shard_files import encoded, picture, write_shard
from tests.eval.tiny import (
    LinearTowers,
    image_features,
    make_encoder,
    text_features,
    write_classified,
)

NAMES = [f"thing {'abcdefghijk'[number]}" for number in range(11)]


def reference_ranks(path: Path, names: list[str], templates: list[str], label) -> list[int]:
    """Place of each sample's class: templates averaged, sorted by score, then by place."""
    rows = []
    for name in names:
        mean = text_features([template.format(name) for template in templates]).mean(0)
        rows.append(mean / mean.norm())
    ranks = []
    for number, feature in enumerate(image_features(path)):
        order = sorted(range(len(names)), key=lambda m: (-float(feature @ rows[m]), m))
        ranks.append(order.index(label(number)))
    return ranks


@pytest.mark.parametrize("templates", [["{}"], ["a {}.", "the drawn {}", "{} of mine"]])
def test_top1_and_top5_are_the_reference(tmp_path: Path, templates: list[str]) -> None:
    data = write_classified(tmp_path / "a.tar", 23, num_classes=11)
    ranks = reference_ranks(data, NAMES, templates, lambda number: number * 7 % 11)

    result = evaluate_zero_shot(
        make_encoder(), data=str(data), classes=NAMES, templates=templates, num_examples=99
    )

    assert 0 < sum(rank < 5 for rank in ranks) < 23, "a reference that tells nothing"
    assert result.figures["top1"] == sum(rank < 1 for rank in ranks) / 23
    assert result.figures["top5"] == sum(rank < 5 for rank in ranks) / 23
    assert {one.key: one.rank - 1 for one in result.best} == {
        f"{number:05d}": rank for number, rank in enumerate(ranks)
    }


def test_named_templates_are_those_published(tmp_path: Path) -> None:
    assert [len(TEMPLATES[name]) for name in ("name", "simple", "imagenet")] == [1, 7, 80]
    assert set(TEMPLATES["simple"]) <= set(TEMPLATES["imagenet"])
    data = write_classified(tmp_path / "a.tar", 9, num_classes=3)
    by_name = evaluate_zero_shot(
        make_encoder(), data=str(data), classes=NAMES[:3], templates="simple"
    )
    spelled = [template.replace("{name}", "{}") for template in TEMPLATES["simple"]]
    ranks = reference_ranks(data, NAMES[:3], spelled, lambda number: number * 7 % 3)
    assert by_name.figures["top1"] == sum(rank == 0 for rank in ranks) / 9
    assert by_name.figures["num_templates"] == 7


def test_a_model_that_tells_nothing_apart_is_at_chance(tmp_path: Path) -> None:
    data = write_classified(tmp_path / "a.tar", 22, num_classes=11)
    model = LinearTowers()
    model.pixels_DE.zero_()
    result = evaluate_zero_shot(make_encoder(model), data=str(data), classes=NAMES, num_examples=22)
    assert (result.figures["top1"], result.figures["top5"]) == (2 / 22, 10 / 22)
    assert {one.predicted for one in result.best} == {NAMES[0]}
    assert all(one.rank == 1 + NAMES.index(one.text) for one in result.best)


def test_twins_by_name_never_both_win(tmp_path: Path) -> None:
    data = write_classified(tmp_path / "a.tar", 20, num_classes=2)
    figures = evaluate_zero_shot(make_encoder(), data=str(data), classes=["cat", "cat"]).figures
    assert figures["top1"] == 0.5


def test_the_batch_size_does_not_change_what_is_evaluated(tmp_path: Path) -> None:
    data = write_classified(tmp_path / "a.tar", 13, num_classes=5)
    figures = [
        evaluate_zero_shot(
            make_encoder(batch_size=size), data=str(data), classes=NAMES[:5], per_class=True
        ).figures
        for size in (1, 4, 13, 100)
    ]
    calibration = dict(figures[0]["calibration"])
    for each in figures:
        assert each.pop("fast_batch_size") in (1, 4, 13, 100)
        # Sums of floats, whose last bits depend on the shapes of the products.
        assert each.pop("calibration") == pytest.approx(calibration, rel=1e-4)
        for rows in ("confusions", "reliability"):
            each[rows] = [row | {"confidence": None} for row in each[rows]]
    assert all(each == figures[0] for each in figures)


def test_figures_are_complete(tmp_path: Path) -> None:
    data = write_classified(tmp_path / "a.tar", 14, num_classes=4)
    classes = tmp_path / "classes.json"
    # Written in another order than the ids, and one class without samples.
    order = (3, 1, 9, 0, 2)
    classes.write_text(json.dumps([{"id": i, "name": f"n{i}", "group": "x"} for i in order]))
    figures = evaluate_zero_shot(
        make_encoder(), data=str(data), classes=classes, label_key="cls", per_class=True
    ).figures

    assert (figures["num_samples"], figures["num_classes"]) == (14, 5)
    assert figures["versions"].keys() == {"mmtrain", "torch", "pillow"}
    assert len(figures["data_fingerprint"]) == 32
    assert figures["preprocess"]["image_size"] == 16
    shares = figures["class_top1"]
    assert shares["9"] is None
    seen = [shares[str(i)] for i in range(4)]
    assert figures["mean_class_top1"] == pytest.approx(sum(seen) / 4)
    sizes = torch.bincount(torch.tensor([number * 7 % 4 for number in range(14)]))
    right = sum(share * int(size) for share, size in zip(seen, sizes, strict=True))
    assert figures["top1"] == pytest.approx(right / 14)
    wrong = sum(row["count"] for row in figures["confusions"])
    assert wrong == 14 - round(right)
    assert all(row["name"] != row["predicted"] for row in figures["confusions"])


def test_fingerprints_tell_data_and_classes_apart(tmp_path: Path) -> None:
    for number, count in enumerate((9, 9, 10)):
        write_classified(tmp_path / f"{number}.tar", count, num_classes=3)

    def prints(number: int, names: list[str]) -> tuple[str, str]:
        data = str(tmp_path / f"{number}.tar")
        figures = evaluate_zero_shot(make_encoder(), data=data, classes=names).figures
        return figures["data_fingerprint"], figures["classes_fingerprint"]

    first = prints(0, NAMES[:3])
    assert prints(1, NAMES[:3]) == first
    assert prints(2, NAMES[:3])[0] != first[0]
    assert prints(0, NAMES[3:6])[1] != first[1]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"json": {"concept": 5}}, "its concept '5' is not among the classes"),
        ({"json": {"other": 0}}, "it has no .concept and its .json no field 'concept'"),
        ({"json": b"{"}, "its .json cannot be read"),
        ({"json": b"[" * 100_000}, "its .json cannot be read"),
        ({}, "it has neither a .concept nor a .json"),
        ({"png": b"\x89PNG no", "json": {"concept": 0}}, "image corrupt"),
        ({"png": b"<html>", "json": {"concept": 0}}, "no image that Pillow reads"),
        ({"png": None, "json": {"concept": 0}}, "no image"),
    ],
)
def test_a_sample_that_cannot_be_evaluated_names_itself_and_stops(
    tmp_path: Path, files: dict, told: str
) -> None:
    good = {"png": encoded(picture((20, 20)), "PNG")}
    bad = {name: content for name, content in (good | files).items() if content is not None}
    samples = [(f"s{i}", good | {"json": {"concept": i % 2}}) for i in range(6)]
    data = write_shard(tmp_path / "part-3.tar", [*samples, ("the-bad-one", bad)])
    with pytest.raises(UsageError) as caught:
        evaluate_zero_shot(make_encoder(), data=str(data), classes=["x", "y"])
    message = str(caught.value)
    assert "sample the-bad-one of" in message and "part-3.tar" in message and told in message
    assert len(message.splitlines()) == 1


def test_all_bad_samples_of_a_batch_are_counted(tmp_path: Path) -> None:
    samples = [(f"s{i}", {"png": b"no", "cls": "0"}) for i in range(3)]
    data = write_shard(tmp_path / "a.tar", samples)
    with pytest.raises(UsageError, match=r"sample s0 of .*\(and 2 more so far\)"):
        evaluate_zero_shot(make_encoder(), data=str(data), classes=["x"], label_key="cls")


@pytest.mark.parametrize("tower", ["pixels_DE", "tokens_VE"])
def test_features_that_are_no_numbers_are_refused(tmp_path: Path, tower: str) -> None:
    data = write_classified(tmp_path / "a.tar", 5, num_classes=2)
    model = LinearTowers()
    getattr(model, tower)[:] = torch.nan
    with pytest.raises(UsageError, match=r"features.* are not finite"):
        evaluate_zero_shot(make_encoder(model), data=str(data), classes=["x", "y"])


def test_workers_give_the_same(tmp_path: Path) -> None:
    data = write_classified(tmp_path / "a.tar", 13, num_classes=5)
    state = torch.get_rng_state()
    alone, worked = (
        evaluate_zero_shot(make_encoder(workers=workers), data=str(data), classes=NAMES[:5])
        for workers in (0, 2)
    )
    assert alone == worked
    assert torch.equal(torch.get_rng_state(), state), "an evaluation moved the run's randomness"


@pytest.mark.parametrize("files", [{"cls": b"[1]"}, {"json": {"cls": [1]}}, {"cls": b" 1\n"}])
def test_a_list_of_one_label_is_a_label(tmp_path: Path, files: dict) -> None:
    good = {"png": encoded(picture((20, 20)), "PNG")}
    data = write_shard(tmp_path / "a.tar", [(f"s{i}", good | files) for i in range(3)])
    figures = evaluate_zero_shot(
        make_encoder(), data=str(data), classes=["x", "y"], label_key="cls"
    ).figures
    assert figures["num_samples"] == 3


@pytest.mark.parametrize(
    "files",
    [
        *({"cls": text} for text in (b"0 1", b"0,1", b"0, 1\n", b"[0, 1]", b'["0", "1"]', b"0\n1")),
        {"json": {"cls": [0, 1]}},
        {"json": {"cls": "0;1"}},
    ],
)
def test_several_labels_are_refused_as_such(tmp_path: Path, files: dict) -> None:
    """Accuracy is of images with one class; a multi-label set wants another figure."""
    good = {"png": encoded(picture((20, 20)), "PNG")}
    samples = [(f"s{i}", good | {"cls": b"0"}) for i in range(3)] + [("two", good | files)]
    data = write_shard(tmp_path / "a.tar", samples)
    with pytest.raises(UsageError) as caught:
        evaluate_zero_shot(make_encoder(), data=str(data), classes=["x", "y"], label_key="cls")
    message = str(caught.value)
    assert "sample two of" in message and "names 2 classes (0, 1)" in message
    assert "mean average precision" in message and len(message.splitlines()) == 1


@pytest.mark.parametrize("names", [["a cat", "a dog", "a cat"], ["A Cat", "a dog", "a cat"]])
def test_classes_that_are_one_to_the_model_are_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
) -> None:
    """Once, however often a run evaluates."""
    monkeypatch.setattr("mmtrain.eval.classify.zero_shot._told", set())
    data = write_classified(tmp_path / "a.tar", 6, num_classes=3)
    evaluate_zero_shot(make_encoder(), data=str(data), classes=NAMES[:3])
    assert not capsys.readouterr().err
    evaluate_zero_shot(make_encoder(), data=str(data), classes=names)
    told = capsys.readouterr().err
    assert "the classes 0 and 2 are both" in told and "no text tells them apart" in told
    evaluate_zero_shot(make_encoder(), data=str(data), classes=names)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("label", [None, float("nan"), ""])
def test_no_label_is_not_a_class_of_that_name(label: object) -> None:
    read = ReadClass(label_key="y", number={"None": 0, "nan": 1, "": 2})
    with pytest.raises(SampleError, match="it has no y: the field is empty"):
        read({"json": json.dumps({"y": label}).encode()})


@pytest.mark.parametrize(
    "line", ["lambda c: f'a photo of a {c}.',", '"a photo of {}.",', "f'a {name}',"]
)
def test_a_line_of_a_program_is_no_prompt(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.txt").write_text(f"a {{}}\n{line}\n")
    with pytest.raises(UsageError, match=r"t.txt:2: .* is a program's; write the prompt alone"):
        load_templates(str(tmp_path / "t.txt"))
    assert load_templates(["the {}'s 'good' photo,", "'90s {}"])
