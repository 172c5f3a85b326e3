"""Adapters of a model that answers: learned tokens under every mask, and runs that train them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.loading.vqa import load_vqa
from mmtrain.models.answer_cache import read_together
from mmtrain.models.connector import ConnectorConfig
from mmtrain.models.generate_answers import AnswerGenerator, GenerateConfig
from mmtrain.models.vision import VisionConfig
from mmtrain.nn import TransformerConfig
from mmtrain.peft import PromptConfig
from tests.ranks import run_ranks
from tests.tasks.test_vqa_run import build, write_recipe
from tests.train.test_peft import compare, three_steps

CORE = TransformerConfig(dim=16, num_layers=2, num_heads=2, num_kv_heads=1)
PROMPTS = [
    PromptConfig(num_tokens=3),
    PromptConfig(kind="p_tuning", num_tokens=3, network="lstm", hidden_dim=4),
    PromptConfig(kind="prefix", num_tokens=3),
]


@torch.no_grad()
@pytest.mark.parametrize("mask", ["causal", "prefix", "block"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.kind)
def test_what_is_written_sees_what_training_saw(prompt: PromptConfig, mask: str):
    vision = VisionConfig(image_size=16, patch_size=8, transformer=CORE)
    blocks = replace(CORE, mask=mask)
    config = GenerateConfig(transformer=blocks, vocab_size=20, text_length=9, prompt=prompt)
    generator = AnswerGenerator(config, vision=vision, connector=ConnectorConfig(), front_door=None)
    draw = torch.Generator().manual_seed(0)
    for parameter in generator.parameters():
        parameter.normal_(0, 0.5, generator=draw)
    image_BTD = torch.randn(2, 1 + vision.num_patches, 16, generator=draw)
    tokens_QT = torch.randint(20, (4, 7), generator=draw)
    length_Q = torch.tensor([7, 4, 5, 6])
    trained_QTV = generator(image_BTD, tokens_QT, length_Q, length_Q)
    image_QPD = generator.image_tokens(image_BTD).repeat_interleave(2, dim=0)
    assert generator.decoder.embed is not None
    text_QTD = generator.decoder.embed.token(tokens_QT)
    start = read_together(generator, image_QPD, text_QTD, length_Q, max_new_tokens=2)
    want_QV = trained_QTV[torch.arange(4), length_Q - 1]
    torch.testing.assert_close(start.logits_BV, want_QV, atol=1e-5, rtol=1e-5)
    plain = AnswerGenerator(
        replace(config, prompt=None), vision=vision, connector=ConnectorConfig(), front_door=None
    )
    plain.load_state_dict(generator.state_dict(), strict=False)
    assert (plain(image_BTD, tokens_QT, length_Q, length_Q) - trained_QTV).abs().max() > 0.01


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a short run of it."""
    folder = tmp_path_factory.mktemp("vqa_peft")
    path = write_recipe(folder)
    words = ["--run-dir", str(folder / "one"), "--train.steps", "1", "--eval.vqa", "[]"]
    assert main(["train", str(path), *words]) == 0
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["--peft.kind", "lora", "--peft.targets", '["*.attention.*"]', "--peft.dropout", "0.2"],
        ["--peft.kind", "prompt", "--peft.num_tokens", "3"],
        ["--peft.kind", "p_tuning", "--peft.network", "lstm", "--peft.hidden_dim", "4"],
        ["--peft.kind", "prefix", "--peft.network", "mlp"],
        ["--peft.kind", "context", "--peft.num_tokens", "3"],
    ],
    ids=lambda words: words[1],
)
def test_the_adapter_trains_and_the_model_stays(words: list[str], trained: Path, tmp_path: Path):
    start = ["--vqa.init", str(trained / "one"), "--run-dir", str(tmp_path / "two")]
    start += ["--train.steps", "2", "--train.microbatches", "2", "--eval.vqa", "[]"]
    assert main(["train", str(trained / "recipe.toml"), *start, *words]) == 0
    before = load_vqa(trained / "one").model.state_dict()
    after = load_vqa(tmp_path / "two").model.state_dict()
    moved = {n for n, x in after.items() if n not in before or not torch.equal(x, before[n])}
    assert (tmp_path / "two/adapter/adapter_config.json").is_file()
    wanted = {
        "lora": {n for n in before if ".attention." in n and n.endswith(".weight")},
        "context": {"text.embed.context"},
    }.get(words[1], {"generate.prompt.rows"})
    norms = {n for n in wanted if before.get(n, torch.zeros(2, 2)).ndim < 2}
    assert moved == wanted - norms


def test_what_an_adapter_leaves_as_drawn_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--model.vision_init", "nothing", "--peft.kind", "lora"]
    assert main(["train", str(trained / "recipe.toml"), *words]) == 2
    capsys.readouterr()
    words = ["--vqa.init", str(trained / "one"), "--peft.kind", "lora", "--vqa.vision_lr", "1e-4"]
    words += ["--peft.targets", '["generate.*.attention.q"]', "--run-dir", str(tmp_path / "bad")]
    assert main(["train", str(trained / "recipe.toml"), *words]) == 2
    assert "vqa.vision_lr has no effect" in capsys.readouterr().err
    start = ["--vqa.init", str(trained / "one"), "--parallel.tp", "2", "--peft.kind"]
    for words, line in (
        (["prefix"], "a learned prefix does not work with parallel.tp = 2"),
        (["p_tuning", "--peft.network", "lstm"], "an LSTM behind learned tokens does not work"),
    ):
        assert main(["train", str(trained / "recipe.toml"), *start, *words]) == 2
        assert line in capsys.readouterr().err


def test_an_adapter_beside_which_a_front_door_stays_shut_is_refused(trained: Path):
    words = ["--vqa.init", str(trained / "one"), "--peft.kind", "lora"]
    words += ["--vqa.front_door.places", '["image", "question", "vision"]']
    with pytest.raises(
        UsageError, match=r"the front door vision\.transformer\.blocks\.0\.front_door"
    ):
        build(trained / "recipe.toml", *words)
    run = build(trained / "recipe.toml", *words, "--peft.also_train", '["vision.*front_door*"]')
    trains = {n for n, p in run.state.stage_parameters().items() if p.requires_grad}
    assert {n for n in trains if "lora" not in n and "front_door" not in n} == set()
    assert "vision.transformer.blocks.1.front_door.dictionary" in trains


def test_an_adapters_parameters_are_all_that_has_a_gradient(trained: Path):
    words = ["--vqa.init", str(trained / "one"), "--peft.kind", "prefix", "--peft.num_tokens", "2"]
    run = build(trained / "recipe.toml", *words)
    run.state.objective.step(run.state.schedule, run.data.batch(0))
    grads = {n for n, p in run.state.stage_parameters().items() if p.grad is not None}
    assert grads == {"generate.prompt.rows"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_have_the_single_process_gradients_and_weights(trained: Path, tmp_path: Path):
    common = ["--vqa.init", str(trained / "one"), "--run.dir", str(tmp_path / "run")]
    common += ["--train.precision", "fp64", "--train.steps", "3", "--peft.kind"]
    every = '["*.attention.*", "*.feed_forward.*", "*.cross_attention.*"]'
    shared = {
        "lora": [*common, "lora", "--peft.targets", every, "--peft.also_train", '["classify.*"]'],
        "prompt": [*common, "prompt", "--peft.num_tokens", "3"],
        "mlp": [*common, "p_tuning", "--peft.num_tokens", "3", "--peft.hidden_dim", "16"],
        "context": [*common, "context", "--peft.num_tokens", "3"],
    }
    whole = {
        "lstm": [*common, "p_tuning", "--peft.network", "lstm", "--peft.hidden_dim", "4"],
        "prefix": [*common, "prefix", "--peft.network", "mlp", "--peft.num_tokens", "3"],
        "dropped": [*common, "lora", "--peft.dropout", "0.3"],
    }
    recipe = trained / "recipe.toml"
    for name, words in (shared | whole).items():
        grads, weights = three_steps(words, recipe)
        assert grads and grads.keys() == weights.keys()
        # Units of a ReLU may be silent, and a front door of one step counts nothing yet.
        assert sum(bool(value.any()) for value in grads.values()) > len(grads) / 2, name
        torch.save((grads, weights), tmp_path / f"{name}.pt")
    tp, shard = ["--parallel.tp", "2"], ["--parallel.dp_shard", "2"]
    layouts = [tp, [*tp, "--parallel.sequence", "false"], shard]
    run_ranks(compare, 2, tmp_path, shared, layouts, recipe)
    run_ranks(compare, 2, tmp_path, whole, [shard, ["--parallel.dp_replicate", "2"]], recipe)
