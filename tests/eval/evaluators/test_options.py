"""A section and the words of its command say the same."""

import subprocess
import sys
from dataclasses import fields, replace

import pytest

from mmtrain.cli import build_parser
from mmtrain.eval.config import EVALUATORS, EvalConfig
from mmtrain.eval.evaluators.associations import AssociationsConfig
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.evaluators.knn import KnnConfig
from mmtrain.eval.evaluators.linear_probe import LinearProbeConfig
from mmtrain.eval.evaluators.options import read_options
from mmtrain.eval.evaluators.pairs import PairsConfig
from mmtrain.eval.evaluators.retrieval import RetrievalConfig
from mmtrain.eval.evaluators.vqa import VqaEvalConfig
from mmtrain.eval.evaluators.zero_shot import ZeroShotConfig
from mmtrain.eval.scheduled import command_words

KNN = KnnConfig(name="x", train=("a.tar", "b.tar"), test=("c.tar",))
PROBE = LinearProbeConfig(name="x", train=("a.tar",), test=("c d.tar",))
RETRIEVAL = RetrievalConfig(name="x", data=("a.tar",))
CASES: tuple[Evaluator, ...] = (
    KNN,
    replace(KNN, temperature=None, neighbours=3, per_class=True),
    replace(KNN, temperature=0.123456789),
    PROBE,
    replace(PROBE, validation=("v.tar",), strengths=(1e-05, 3.0), label_key="cls"),
    RETRIEVAL,
    replace(RETRIEVAL, captions=("title", "txt"), caption_lines=True),
    replace(RETRIEVAL, caption_lines=False, image_key="png"),
    ZeroShotConfig(name="x", data=("a",), classes="imagenet", subset="imagenet-a"),
    ZeroShotConfig(name="x", data=("a",), group_key="npy[0]", ignored_groups=("5", "6")),
    ZeroShotConfig(name="x", data=("a",), classes="c.json", templates="imagenet", image_key="p"),
    PairsConfig(name="x", data=("a.jsonl",), caption="txt", negatives=("b", "c")),
    AssociationsConfig(name="x", data=("images",), cues="winogavil_dataset.csv"),
    VqaEvalConfig(name="x", data=("a.jsonl",), image_key="picture"),
    VqaEvalConfig(name="x", data=("a",), questions="q.json", choices="c.json", head="generate"),
    VqaEvalConfig(name="x", data=("a.parquet",), choose="letter"),
)


@pytest.mark.parametrize("config", CASES)
def test_the_words_of_a_section_are_read_as_that_section(config: Evaluator) -> None:
    words = [*command_words(config), "--model", "m", "--out", "o.json"]
    arguments = build_parser().parse_args(words)
    assert read_options(type(config), arguments, name="x") == config


def test_every_evaluator_is_a_command_and_a_section() -> None:
    """The fields of the recipe's section are the one list of them."""
    assert set(EVALUATORS) < {field.name for field in fields(EvalConfig)}
    group = next(a for a in build_parser()._actions if a.dest == "command" or a.choices)
    assert isinstance(group.choices, dict)
    kinds = next(a.choices for a in group.choices["eval"]._actions if a.choices)
    sections = {section.replace("_", "-") for section in EVALUATORS}
    assert sections | {"answers", "suite"} == set(kinds)
    for config in EVALUATORS.values():
        assert {config} & {type(case) for case in CASES}, f"{config} has no case here"


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys, mmtrain.eval.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
