"""Evaluations that a recipe names: what they need is opened before, what they say is the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmtrain.errors import UsageError
from mmtrain.eval import evaluate_knn, evaluate_linear_probe, evaluate_retrieval, evaluate_zero_shot
from mmtrain.eval.evaluators.knn import KnnConfig
from mmtrain.eval.evaluators.linear_probe import LinearProbeConfig
from mmtrain.eval.evaluators.retrieval import RetrievalConfig
from mmtrain.eval.evaluators.zero_shot import ZeroShotConfig
from mmtrain.eval.scheduled import check_evaluation, run_evaluation
from tests.eval.classify.test_layouts import write_clip_benchmark, write_folders
from tests.eval.classify.test_linear_probe import write_colours
from tests.eval.tiny import make_encoder


def test_they_are_the_functions(tmp_path: Path) -> None:
    train, test = (write_colours(tmp_path / f"{n}.tar", n) for n in (30, 20))
    names = tmp_path / "names.txt"
    names.write_text("dark\nmiddle\nbright\n")
    root = str(write_clip_benchmark(tmp_path / "wds_mine"))
    sets: dict[str, Any] = {"train": train, "test": test, "label_key": "cls"}
    sets["classes"] = str(names)
    for config, function, arguments in (
        (KnnConfig(name="x", neighbours=3, **sets), evaluate_knn, {**sets, "neighbours": 3}),
        (
            LinearProbeConfig(name="x", validation=test, strengths=(1.0, 9.0), **sets),
            evaluate_linear_probe,
            {**sets, "validation": test, "strengths": (1.0, 9.0)},
        ),
        (
            ZeroShotConfig(name="x", data=root),
            evaluate_zero_shot,
            {
                "data": f"{root}/test",
                "classes": ["red fox", "owl"],
                "label_key": "cls",
                "templates": ["a photo of a {name}.", "the {name}"],
            },
        ),
        (
            RetrievalConfig(name="x", data=f"{root}/test", caption_lines=True),
            evaluate_retrieval,
            {"data": f"{root}/test", "caption_lines": True},
        ),
    ):
        check_evaluation(config, make_encoder().preprocess)
        result, keys = run_evaluation(make_encoder(), config)
        assert result == function(make_encoder(), **arguments)
        assert all(isinstance(result.figures[key], float) for key in keys)


def test_mistakes_name_the_evaluation(tmp_path: Path) -> None:
    folder = str(write_folders(tmp_path / "folder", each=1))
    good = ZeroShotConfig(name="mine", data=folder)
    check_evaluation(good, make_encoder().preprocess)
    for changes, told in (
        ({"data": "nowhere.tar"}, "data = nowhere.tar"),
        ({"classes": "no.json"}, "classes = no.json cannot be read"),
        ({"templates": "foto"}, "templates = foto"),
        ({"label_key": "cls"}, "label_key = cls: the layout of data"),
    ):
        with pytest.raises(UsageError, match=f"^eval mine: {told}"):
            check_evaluation(replace(good, **changes), make_encoder().preprocess)
