"""How a model cuts itself into stages."""

from collections import Counter

import pytest
import torch

from mmtrain.models import Clip
from mmtrain.models.connector import ConnectorConfig
from mmtrain.models.model import Model
from mmtrain.models.slices import balance, layer_range
from mmtrain.nn import Transformer
from tests.models.test_clip import build
from tests.models.test_decoder import build as build_decoder
from tests.models.test_vqa import WITHIN
from tests.models.test_vqa import build as build_vqa
from tests.parallel.tiny_clip import make_batch, modern_config

MOST = {"clip": 3, "vqa": 4, "vqa, choosing": 4, "vqa, writing": 4, "decoder": 2}
"""Stages of each, at most."""


def make(kind: str) -> Model:
    if kind == "clip":
        return build()
    if kind == "decoder":
        return build_decoder(tied_head=True)
    heads = {"vqa, choosing": {"generate": None}, "vqa, writing": {"classify": None}}
    changes = heads.get(kind, {})
    if kind == "vqa, writing":
        changes["front_door"] = None
    if kind == "vqa":
        changes["front_door"] = WITHIN
    return build_vqa(connector=ConnectorConfig(kind="queries"), **changes)


@pytest.mark.parametrize("num_layers", [1, 4, 7, 12, 24])
def test_layers_are_cut_evenly_and_completely(num_layers):
    for num_stages in range(1, num_layers + 1):
        ranges = [layer_range(num_layers, i, num_stages) for i in range(num_stages)]
        assert [layer for part in ranges for layer in part] == list(range(num_layers))
        sizes = [len(part) for part in ranges]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("kind", "most"), MOST.items())
def test_stages_share_the_models_parameters_under_their_names(kind: str, most: int):
    model = make(kind)
    whole = dict(model.stage().named_parameters())
    for num_stages in range(1, most + 1):
        found: dict[str, torch.Tensor] = {}
        for index in range(num_stages):
            stage = dict(model.stage().slice(index, num_stages).named_parameters())
            assert not stage.keys() & found.keys()
            found |= stage
        assert found.keys() == whole.keys()
        assert all(found[name] is whole[name] for name in whole)
    # The model that was cut is still whole.
    assert dict(model.stage().named_parameters()).keys() == whole.keys()


@pytest.mark.parametrize(("kind", "most"), MOST.items())
def test_more_stages_than_layers_are_refused(kind: str, most: int):
    stage = make(kind).stage()
    assert stage.cuts().most == most
    with pytest.raises(ValueError, match=f"{most + 1} stages cut .*{most}.*; use at most {most}"):
        stage.slice(0, most + 1)


@pytest.mark.parametrize("kind", MOST)
def test_a_stage_tells_of_all_its_blocks(kind: str):
    """Whole or cut: by the paths that it has them under, each with a place in a recipe."""
    whole = make(kind).stage()
    keys = {path: stack.key for path, stack in whole.stacks().items()}
    assert max(Counter(keys.values()).values()) == 1
    for stage in (whole, *(whole.slice(index, 2) for index in range(2))):
        held = {n: m for n, m in stage.named_modules() if isinstance(m, Transformer)}
        assert {path: stack.blocks for path, stack in stage.stacks().items()} == held
        for path, stack in stage.stacks().items():
            assert stack.key == keys[path] and stack.tokens == whole.stacks()[path].tokens


def test_stages_one_after_another_are_the_model():
    model = Clip(modern_config(4)).init_weights(0).double()
    batch, x = make_batch(), None
    rows = {"tokens_BT": batch.tokens_BT, "length_B": batch.text_length_B}
    for index in range(4):
        stage = model.stage().slice(index, 4)
        x = stage(batch.images_BCHW, **rows) if x is None else stage(*x, **rows)
    assert torch.equal(x, model.stage()(batch.images_BCHW, **rows))


def test_the_heavier_part_gets_more_stages():
    stacks = [*build_vqa().stage().stacks().values()]
    assert balance(stacks, stacks, 4) == 2
    assert balance(stacks * 9, stacks, 3) == 2 and balance(stacks, stacks * 9, 3) == 1
