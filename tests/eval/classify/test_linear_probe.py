"""The linear probe and the neighbours against scikit-learn's, on the same features."""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from mmtrain.data.sources.open import open_source
from mmtrain.errors import UsageError
from mmtrain.eval import scores
from mmtrain.eval.classify import logistic
from mmtrain.eval.classify.classes import ClassList
from mmtrain.eval.classify.knn import count_votes, evaluate_knn
from mmtrain.eval.classify.labelled import LabelledSet
from mmtrain.eval.classify.linear_probe import evaluate_linear_probe, hold_out
from mmtrain.eval.classify.logistic import fit_logistic, search_strength
from mmtrain.eval.evaluators.linear_probe import LinearProbeConfig
from mmtrain.eval.features.gathered import encode_set
from mmtrain.eval.scheduled import check_evaluation, run_evaluation
from tests.data.shard_files import encoded, picture, write_shard
from tests.eval.tiny import image_features, make_encoder, write_classified

NUM_CLASSES = 8


def clouds(num: int, *, seed: int, noise: float = 2.0) -> tuple[Tensor, Tensor]:
    """Unit-norm features around eight centres that overlap, of unequally frequent classes."""
    centre_ME = torch.randn(NUM_CLASSES, 24, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    weight_M = torch.arange(1, NUM_CLASSES + 1).float()
    class_N = weight_M.multinomial(num, replacement=True, generator=generator)
    x_NE = centre_ME[class_N] + noise * torch.randn(num, 24, generator=generator)
    return torch.nn.functional.normalize(x_NE, dim=1), class_N


def sklearn_predictions(x_NE: Tensor, class_N: Tensor, test_NE: Tensor, strength: float) -> Tensor:
    model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that its next version names otherwise
        model.fit(x_NE.double().numpy(), class_N.numpy())
    return torch.from_numpy(model.predict(test_NE.double().numpy()))


@pytest.mark.parametrize("strength", [1e-3, 1.0, 316.0, 1e6])
def test_logistic_regression_is_scikit_learns(strength: float) -> None:
    x_NE, class_N = clouds(600, seed=1)
    test_NE, test_class_N = clouds(1000, seed=2)
    theirs = sklearn_predictions(x_NE, class_N, test_NE, strength)
    ours = fit_logistic(x_NE, class_N, num_classes=NUM_CLASSES, strength=strength)
    predicted = ours.scores(test_NE).argmax(1)
    accuracies = [float((each == test_class_N).double().mean()) for each in (predicted, theirs)]
    assert abs(accuracies[0] - accuracies[1]) <= 0.002
    assert float((predicted == theirs).double().mean()) >= 0.995
    # The class that is most frequent is all that the strongest regularisation leaves.
    assert accuracies[0] > 0.4 if strength > 0.1 else accuracies[0] > 0.15


def test_blocks_do_not_change_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x_NE, class_N = clouds(120, seed=3)
    whole = fit_logistic(x_NE, class_N, num_classes=NUM_CLASSES, strength=1.0)
    monkeypatch.setattr(scores, "MAX_SCORES", 7 * NUM_CLASSES)
    assert len(logistic.blocks(120, NUM_CLASSES)) == 18
    parts = fit_logistic(x_NE, class_N, num_classes=NUM_CLASSES, strength=1.0)
    assert torch.allclose(whole.weight_ME, parts.weight_ME, atol=1e-4)


@pytest.mark.parametrize("peak", [-6.0, -3.375, 0.0, 0.5, 2.625, 6.0])
def test_the_search_finds_a_peak_to_an_eighth_of_a_decade(peak: float) -> None:
    tried: list[float] = []

    def score(strength: float) -> float:
        tried.append(strength)
        return -abs(math.log10(strength) - peak)

    best, found = search_strength(score, device=torch.device("cpu"), group=None)
    assert abs(math.log10(best) - peak) < 1e-9
    assert len(tried) == len(set(tried)) == len(found) <= 15
    assert list(found) == sorted(found)


def test_of_equal_strengths_the_strongest_regularisation_is_taken() -> None:
    best, _ = search_strength(lambda _: 0.5, device=torch.device("cpu"), group=None)
    assert best == 1e-6


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, None), (15, None), (15, 0.07)])
def test_neighbours_are_scikit_learns(neighbours: int, temperature: float | None) -> None:
    x_NE, class_N = clouds(600, seed=1)
    test_NE, test_class_N = clouds(1000, seed=2)

    def weights(distance: np.ndarray) -> np.ndarray:
        assert temperature is not None
        return np.exp((1 - distance) / temperature)

    chosen: Any = "uniform" if temperature is None else weights
    model = KNeighborsClassifier(neighbours, metric="cosine", weights=chosen)
    model.fit(x_NE.numpy(), class_N.numpy())
    theirs = torch.from_numpy(model.predict(test_NE.numpy()))
    source = open_source("synthetic:1")
    votes_NM = count_votes(
        test_NE,
        LabelledSet(
            source=source, features_NE=x_NE, class_N=class_N, sample_N=torch.arange(len(class_N))
        ),
        num_classes=NUM_CLASSES,
        neighbours=neighbours,
        temperature=temperature,
    )
    predicted = votes_NM.argmax(1)
    accuracies = [float((each == test_class_N).double().mean()) for each in (predicted, theirs)]
    assert abs(accuracies[0] - accuracies[1]) <= 0.002
    assert float((predicted == theirs).double().mean()) >= 0.995
    assert torch.allclose(votes_NM.sum(1), torch.ones(1000))


@pytest.mark.parametrize("neighbours", [1, 3, 7, 40])
@pytest.mark.parametrize("temperature", [None, 0.07])
def test_a_class_without_a_vote_is_not_among_the_first(
    tmp_path: Path, neighbours: int, temperature: float | None
) -> None:
    """top5 does not depend on the order of the classes: what counts are the neighbours' classes."""
    train, test = (
        write_classified(tmp_path / f"{name}.tar", count, num_classes=num_classes)
        for name, count, num_classes in (("train", 40, 9), ("test", 25, 8))
    )
    ids = [str(number) for number in range(9)]
    orders = [ClassList(ids=tuple(some), names=tuple(some)) for some in (ids, [*reversed(ids)])]
    found = [
        evaluate_knn(
            make_encoder(),
            train=str(train),
            test=str(test),
            classes=classes,
            label_key="cls",
            neighbours=neighbours,
            temperature=temperature,
        ).figures["top5"]
        for classes in orders
    ]
    near_BK = (image_features(test) @ image_features(train).T).topk(neighbours).indices
    named = [{7 * int(number) % 9 for number in row} for row in near_BK]
    right = [7 * number % 8 in some for number, some in enumerate(named)]
    if neighbours <= 5:
        assert found[0] == found[1] == sum(right) / 25 < 1
    else:
        assert max(found) <= sum(right) / 25


def test_a_tenth_is_held_out_evenly_over_the_classes() -> None:
    class_N = torch.tensor([number // 20 for number in range(160)])
    whole = LabelledSet(
        source=open_source("synthetic:1"),
        features_NE=torch.arange(160.0)[:, None],
        class_N=class_N,
        sample_N=torch.arange(160),
    )
    kept, held = hold_out(whole)
    assert torch.bincount(held.class_N).tolist() == [2] * 8
    rows = torch.cat([kept.features_NE, held.features_NE])[:, 0].sort().values
    assert torch.equal(rows, torch.arange(160.0))
    with pytest.raises(UsageError, match="train has 9 samples, too few to hold some out"):
        hold_out(whole.rows(torch.arange(9)))


def write_colours(path: Path, num: int, *, start: int = 0) -> str:
    """Pictures tinted by their class, so that a linear map of the pixels can tell it."""
    samples = []
    for number in range(start, start + num):
        shade = picture((16, 16), seed=number).convert("RGB")
        scaled = shade.point([min(255, v * (1 + number % 3)) for v in range(256)] * 3)
        files = {"png": encoded(scaled, "PNG"), "cls": str(number % 3)}
        samples.append((f"{number:04d}", files))
    return str(write_shard(path, samples))


def test_a_probe_of_shards_is_scikit_learns_on_the_same_features(tmp_path: Path) -> None:
    train = write_colours(tmp_path / "train.tar", 60)
    validation = write_colours(tmp_path / "val.tar", 20, start=60)
    test = write_colours(tmp_path / "test.tar", 50, start=80)
    encoder = make_encoder()
    result = evaluate_linear_probe(
        encoder,
        train=train,
        validation=validation,
        test=test,
        classes=["dark", "middle", "bright"],
        label_key="cls",
        strengths=[0.1, 10.0, 1000.0],
        num_examples=50,
    )
    sets = [
        encode_set(encoder, open_source(path), lambda members: int(members["cls"]))
        for path in (train, validation, test)
    ]
    (x, y), (xv, yv), (xt, yt) = [(features, torch.tensor(classes)) for features, classes in sets]
    for row in result.figures["tried"]:
        predicted = sklearn_predictions(x, y, xv, row["strength"])
        assert row["top1"] == float((predicted == yv).double().mean())
    best = max(result.figures["tried"], key=lambda row: (row["top1"], -row["strength"]))
    assert result.figures["strength"] == best["strength"]
    predicted = sklearn_predictions(torch.cat([x, xv]), torch.cat([y, yv]), xt, best["strength"])
    assert result.figures["top1"] == float((predicted == yt).double().mean()) > 0.5
    names = ["dark", "middle", "bright"]
    assert {one.key: one.predicted for one in result.best} == {
        f"{80 + number:04d}": names[place] for number, place in enumerate(predicted.tolist())
    }
    figures = result.figures
    assert (figures["num_train"], figures["num_validation"], figures["num_samples"]) == (80, 20, 50)
    assert figures["method"] == "linear probe"
    assert figures["train_fingerprint"] != figures["data_fingerprint"]


def test_one_strength_needs_no_search_and_none_searches(tmp_path: Path) -> None:
    train = write_colours(tmp_path / "train.tar", 30)
    probe: dict[str, Any] = {
        "train": train,
        "test": train,
        "classes": list("abc"),
        "label_key": "cls",
    }
    one = evaluate_linear_probe(make_encoder(), **probe, strengths=[5.0]).figures
    assert (one["strength"], one["tried"], one["num_train"]) == (5.0, [], 30)
    searched = evaluate_linear_probe(make_encoder(), **probe).figures
    assert (searched["num_validation"], searched["num_train"]) == (3, 30)
    assert len(searched["tried"]) >= 11


def test_neighbours_of_shards(tmp_path: Path) -> None:
    train = write_colours(tmp_path / "train.tar", 60)
    knn: dict[str, Any] = {"train": train, "classes": list("abc"), "label_key": "cls"}
    figures = evaluate_knn(make_encoder(), test=train, neighbours=1, **knn).figures
    assert figures["top1"] == 1.0, "every image is its own nearest neighbour"
    assert (figures["method"], figures["neighbours"], figures["num_train"]) == ("kNN", 1, 60)
    test = write_colours(tmp_path / "test.tar", 50, start=60)
    few = evaluate_knn(make_encoder(), test=test, neighbours=5, temperature=None, **knn).figures
    assert 0.5 < few["top1"] <= few["top5"] == 1.0


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    train = write_colours(tmp_path / "train.tar", 12)
    probe: dict[str, Any] = {
        "train": train,
        "test": train,
        "classes": list("abc"),
        "label_key": "cls",
    }
    for strengths in ([], [0.0], [math.nan], [math.inf]):
        with pytest.raises(UsageError, match=r"strengths = .* must be positive"):
            evaluate_linear_probe(make_encoder(), **probe, strengths=strengths)
    with pytest.raises(UsageError, match=r"neighbours = 13 must be 1 to 12"):
        evaluate_knn(make_encoder(), **probe, neighbours=13)
    with pytest.raises(UsageError, match=r"temperature = 0 must be above 0"):
        evaluate_knn(make_encoder(), **probe, neighbours=3, temperature=0)
    with pytest.raises(UsageError, match=r"its cls '2' is not among the classes"):
        probe["classes"] = ["a", "b"]
        evaluate_knn(make_encoder(), **probe, neighbours=3)


@pytest.mark.parametrize("num", [2, 9])
def test_one_strength_needs_nothing_held_out(tmp_path: Path, num: int) -> None:
    """As the refusal of so few training samples says; two strengths are a choice."""
    train, test = (write_colours(tmp_path / f"{n}.tar", n) for n in (num, 12))
    names = tmp_path / "names.txt"
    names.write_text("dark\nmiddle\nbright\n")
    sets: dict[str, Any] = {"train": train, "test": test, "label_key": "cls", "classes": str(names)}
    one = LinearProbeConfig(name="x", strengths=(1.0,), **sets)
    check_evaluation(one, make_encoder().preprocess)
    result, _ = run_evaluation(make_encoder(), one)
    assert result.figures["num_train"] == num and result.figures["num_validation"] == 0
    for strengths in (None, (1.0, 2.0)):
        several = replace(one, strengths=strengths)
        for attempt in (
            lambda config=several: check_evaluation(config, make_encoder().preprocess),
            lambda config=several: run_evaluation(make_encoder(), config),
        ):
            with pytest.raises(UsageError, match=f"train has {num} samples, too few"):
                attempt()
