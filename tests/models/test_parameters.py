"""Which parameters training treats otherwise: what decays, what Muon takes, how deep each lies."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmtrain.models.connector import ConnectorConfig
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.models.model import Model
from mmtrain.models.parameters import HasTables, lock_tower, parameter_names
from mmtrain.peft.lora import LoraConfig, apply_lora
from mmtrain.peft.prompts import PromptConfig
from tests.models.test_clip import build
from tests.models.test_decoder import build as build_decoder
from tests.models.test_vqa import CORE, WITHIN
from tests.models.test_vqa import build as build_vqa

PROMPTED = GenerateConfig(
    transformer=replace(CORE, mask="causal"),
    vocab_size=30,
    text_length=12,
    prompt=PromptConfig(num_tokens=2),
)
TABLES = {
    "clip": {
        "vision.embed.registers",
        "vision.embed.positional_embedding",
        "text.embed.positional_embedding",
    },
    "vqa": {
        "vision.embed.positional_embedding",
        *(f"vision.transformer.blocks.{n}.front_door.dictionary" for n in range(2)),
        "text.embed.positional_embedding",
        "classify.connector.queries",
        "classify.front_doors.image.dictionary",
        "classify.front_doors.question.dictionary",
        "generate.connector.queries",
        "generate.front_door.dictionary",
        "generate.prompt.rows",
    },
    "decoder": {"embed.positional_embedding"},
}
"""Those that are no vectors, written out."""


def models() -> dict[str, Model]:
    return {
        "clip": build(),
        "vqa": build_vqa(
            connector=ConnectorConfig(kind="queries"), generate=PROMPTED, front_door=WITHIN
        ),
        "decoder": build_decoder(positions="learned"),
    }


@pytest.mark.parametrize("kind", TABLES)
def test_weight_decay_spares_vectors_and_tables_and_nothing_else(kind: str):
    model = models()[kind]
    vectors = {name for name, p in model.named_parameters() if p.ndim <= 1}
    assert parameter_names(model).no_decay - vectors == TABLES[kind]
    assert vectors <= parameter_names(model).no_decay


@pytest.mark.parametrize("kind", TABLES)
def test_a_module_declares_names_that_it_knows(kind: str):
    for module in models()[kind].modules():
        if isinstance(module, HasTables):
            assert all(hasattr(module, name) for name in module.no_decay), type(module)


def test_a_new_module_need_only_declare_its_tables():
    class Memory(nn.Module):
        no_decay = ("slots",)

        def __init__(self) -> None:
            super().__init__()
            self.slots = nn.Parameter(torch.zeros(3, 2))
            self.read = nn.Linear(2, 2, bias=False)

    model = build()
    model.add_module("memory", Memory())
    added = parameter_names(model).no_decay - parameter_names(build()).no_decay
    assert added == {"memory.slots"}


@pytest.mark.parametrize(("kind", "stacks"), [("clip", 2), ("vqa", 4), ("decoder", 1)])
def test_muon_gets_no_adapter(kind: str, stacks: int):
    model = models()[kind]
    before = parameter_names(model).hidden_matrices
    assert len({name.split(".blocks.")[0] for name in before}) == stacks
    apply_lora(model, LoraConfig(targets=("*.q",)), seed=0)
    after = parameter_names(model).hidden_matrices
    assert after == before and any("lora_a" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("kind", TABLES)
def test_only_towers_have_a_depth(kind: str):
    model = models()[kind]
    expected = {f"{n}.{p}" for n, t in model.towers().items() for p, _ in t.named_parameters()}
    assert parameter_names(model).layer_ids.keys() == expected
    assert expected <= {name for name, _ in model.named_parameters()}


def test_front_doors_in_a_tower_train_by_adamw_and_where_it_is_locked():
    model = build_vqa(front_door=WITHIN)
    assert parameter_names(model).hidden_matrices == parameter_names(build_vqa()).hidden_matrices
    lock_tower(model.vision)
    trains = {name for name, p in model.vision.named_parameters() if p.requires_grad}
    assert trains and trains == {n for n, _ in model.vision.named_parameters() if "door" in n}


def test_muon_gets_the_blocks_matrices_and_nothing_else():
    names = parameter_names(build()).hidden_matrices
    assert len(names) == 2 * 3 * 6
    assert all(".blocks." in name and name.endswith(".weight") for name in names)
    assert not any("norm" in name or "head" in name or "embed" in name for name in names)


def test_every_tower_parameter_has_a_depth():
    model = build()
    ids = parameter_names(model).layer_ids
    assert ids.keys() == {n for n, _ in model.named_parameters() if not n.startswith("logit_")}
    assert ids["vision.embed.patch.weight"] == (0, 4)
    assert ids["vision.transformer.blocks.0.norm1.weight"] == (1, 3)
    assert ids["text.transformer.blocks.2.norm1.weight"] == (3, 1)
    assert ids["text.head.projection.weight"] == (4, 0)


@pytest.mark.parametrize(
    ("unlocked", "trainable"),
    [
        (0, set()),
        (1, {"head"}),
        (2, {"head", "2"}),
        (4, {"head", "0", "1", "2"}),
        (9, {"embed", "head", "0", "1", "2"}),
    ],
)
def test_locking_frees_the_head_side_first(unlocked, trainable):
    model = build()
    lock_tower(model.text, unlocked_layers=unlocked)
    free = {
        name.split(".")[2] if "blocks" in name else name.split(".")[0]
        for name, p in model.text.named_parameters()
        if p.requires_grad
    }
    assert free == trainable
    assert all(p.requires_grad for p in model.vision.parameters())
