"""The pair of towers: unit-norm features, stages, groups of parameters, locking."""

import dataclasses

import pytest
import torch

from mmtrain.models import Clip, ClipConfig, TextConfig, VisionConfig
from mmtrain.models.clip import (
    ClipStage,
    hidden_matrix_names,
    layer_ids,
    lock_tower,
    no_decay_names,
)
from mmtrain.nn import TransformerConfig

CORE = TransformerConfig(dim=16, num_layers=3, num_heads=2)
CONFIG = ClipConfig(
    vision=VisionConfig(
        transformer=CORE, image_size=16, patch_size=8, num_registers=1, pool="attention"
    ),
    text=TextConfig(
        transformer=dataclasses.replace(CORE, mask="causal", layer_scale=0.1),
        vocab_size=32,
        context_length=6,
        end_token_id=31,
    ),
    embed_dim=8,
    init_logit_bias=-10.0,
)
IMAGES = torch.randint(
    0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
TOKENS = torch.tensor([[1, 2, 31, 0, 0], [3, 4, 5, 6, 31], [7, 31, 0, 0, 0]])


def build() -> Clip:
    return Clip(CONFIG).init_weights(0)


@pytest.mark.parametrize("name", ["vision", "text"])
def test_no_projection_needs_equal_widths(name: str):
    tower = dataclasses.replace(getattr(CONFIG, name), projection=False)
    assert dataclasses.replace(CONFIG, embed_dim=16, **{name: tower})
    with pytest.raises(ValueError, match=rf"embed_dim = 8 must be {name}\.transformer\.dim = 16"):
        dataclasses.replace(CONFIG, **{name: tower})


def test_features_have_unit_norm_and_the_stage_gives_the_same():
    model = build().eval()
    image, text = model.encode_image(IMAGES), model.encode_text(TOKENS)
    assert image.shape == text.shape == (3, 8)
    for features in (image, text):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    both = model.stage()(IMAGES, tokens_BT=TOKENS, length_B=torch.tensor([3, 5, 2]))
    torch.testing.assert_close(both, torch.stack([image, text], 1))


def test_the_stage_shares_the_models_weights_but_not_the_scale():
    model = build()
    stage = {id(p) for p in model.stage().parameters()}
    own = {name for name, p in model.named_parameters() if id(p) not in stage}
    assert own == {"logit_scale", "logit_bias"}
    assert isinstance(model.stage(), ClipStage)


def test_weights_follow_the_seed():
    one, same, other = build(), build(), Clip(CONFIG).init_weights(1)
    state = one.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in same.state_dict().items())
    assert not torch.equal(other.vision.embed.patch.weight, one.vision.embed.patch.weight)
    assert one.logit_scale.item() == pytest.approx(2.6592, abs=1e-4)
    assert one.logit_bias is not None and one.logit_bias.item() == -10
    assert Clip(dataclasses.replace(CONFIG, init_logit_bias=None)).logit_bias is None


def test_weight_decay_spares_vectors_positions_and_learned_tokens():
    names = no_decay_names(build())
    spared = {
        "logit_scale", "logit_bias", "vision.embed.class_embedding", "vision.embed.registers",
        "vision.embed.positional_embedding", "text.embed.positional_embedding",
        "vision.head.pool.query", "text.head.norm.bias", "text.transformer.blocks.0.scale1.scale",
        "vision.transformer.blocks.2.attention.q.bias",
    }  # fmt: skip
    assert spared <= names
    assert not names & {
        "text.embed.token.weight", "vision.embed.patch.weight", "vision.head.projection.weight",
        "vision.transformer.blocks.0.attention.q.weight",
    }  # fmt: skip


def test_muon_gets_the_blocks_matrices_and_nothing_else():
    names = hidden_matrix_names(build())
    assert len(names) == 2 * 3 * 6
    assert all(".blocks." in name and name.endswith(".weight") for name in names)
    assert not any("norm" in name or "head" in name or "embed" in name for name in names)


def test_every_tower_parameter_has_a_depth():
    model = build()
    ids = layer_ids(model)
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
