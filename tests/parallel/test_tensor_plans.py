"""A module's declared plan, and nothing about its class, says what a tp mesh does to it."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

import mmtrain
from mmtrain.errors import UsageError
from mmtrain.models import Clip
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.models.model import Stage
from mmtrain.nn import Transformer
from mmtrain.parallel.tensor_plans import check_tensor_parallel_stage, planned_modules
from tests.models.test_decoder import build as build_decoder
from tests.models.test_vqa import CORE, WITHIN
from tests.models.test_vqa import build as build_vqa
from tests.parallel.tiny_clip import tiny_config

KINDS = {"Clip", "ClipStage", "Vqa", "VqaStage", "Decoder", "DecoderStage"}
KINDS |= {"VisionTower", "TextTower", "AnswerClassifier", "AnswerGenerator", "TokenEmbedding"}
KINDS |= {"Connector", "FrontDoor"}


def clip_with_odd_text() -> Stage:
    config = tiny_config()
    text = replace(config.text, transformer=replace(config.text.transformer, ff_dim=33))
    return Clip(replace(config, text=text)).stage()


@pytest.mark.parametrize(
    ("stage", "tp", "found"),
    [
        (clip_with_odd_text, 2, r"model\.text\.transformer\.ff_dim = 33; use one of"),
        (
            lambda: build_vqa().stage(),
            4,
            r"parallel\.tp = 4 must divide model\.vision\.transformer\.num_heads = 2",
        ),
        (
            lambda: build_vqa(
                generate=GenerateConfig(
                    transformer=replace(CORE, mask="causal", ff_dim=33),
                    vocab_size=30,
                    text_length=12,
                )
            ).stage(),
            2,
            r"vqa\.generate\.transformer\.ff_dim = 33",
        ),
        (
            lambda: build_vqa(
                generate=GenerateConfig(
                    transformer=replace(CORE, mask="causal", qk_norm="rms", qk_norm_over="heads"),
                    vocab_size=30,
                    text_length=12,
                )
            ).stage(),
            2,
            r'vqa\.generate\.transformer\.qk_norm_over = "heads" needs all heads',
        ),
        (lambda: build_decoder().stage(), 3, "decoder.transformer.num_heads = 4"),
        (
            lambda: build_vqa(front_door=WITHIN).stage(),
            2,
            r'parallel\.tp = 2 .* with "vision" in vqa\.front_door\.places; leave it out there, or',
        ),
    ],
)
def test_a_degree_that_does_not_fit_names_the_recipes_key(stage, tp: int, found: str):
    whole = stage()
    check_tensor_parallel_stage(whole, 1)
    with pytest.raises(UsageError, match=found):
        check_tensor_parallel_stage(whole, tp)


@pytest.mark.parametrize("build", [lambda: Clip(tiny_config()), build_vqa, build_decoder])
def test_all_stacks_of_blocks_and_vocabularies_have_a_plan(build):
    stage = build().stage()
    planned = {module for _, module, _ in planned_modules(stage)}
    assert {m for m in stage.modules() if isinstance(m, Transformer)} <= planned
    assert sum(hasattr(m, "tensor_plan") for m in stage.modules()) == len(planned)


@pytest.mark.parametrize("room", ["parallel", "report"])
def test_nobody_asks_which_model_it_is(room: str):
    for path in (Path(mmtrain.__file__).parent / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                asked = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                assert not asked & KINDS, f"{path}:{node.lineno}"
