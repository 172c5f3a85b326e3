"""The pair of towers: unit-norm features, stages, weights by seed."""

import dataclasses

import pytest
import torch

from mmtrain.models import Clip, ClipConfig, DecoderConfig, TextConfig, VisionConfig
from mmtrain.models.classify_answers import ClassifyConfig
from mmtrain.models.clip import ClipStage
from mmtrain.models.generate_answers import GenerateConfig
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
    torch.testing.assert_close(both, torch.cat([image, text], dim=1))


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


def test_only_a_tower_with_a_trunk_has_no_blocks():
    none = TransformerConfig(dim=16, num_layers=0, num_heads=4)
    causal = dataclasses.replace(none, mask="causal")
    for build in (
        lambda: VisionConfig(transformer=none),
        lambda: TextConfig(transformer=none),
        lambda: DecoderConfig(transformer=causal, vocab_size=9, context_length=8),
        lambda: GenerateConfig(transformer=causal),
        lambda: ClassifyConfig(fusion=none),
    ):
        with pytest.raises(ValueError, match="num_layers = 0 must be at least 1"):
            build()
