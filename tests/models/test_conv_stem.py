"""The convolutional stem: what a token sees, its weights' start, and where it cannot go."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.errors import UsageError
from mmtrain.interop.hf_clip_config import config_to_hf
from mmtrain.interop.open_clip_config import config_to_open_clip
from mmtrain.models import Clip, VisionConfig, VisionTower
from mmtrain.models.conv_stem import ConvStem
from mmtrain.models.flops import clip_flops
from mmtrain.models.fused import fused_clip
from mmtrain.models.vision_config import CLIP_MEAN, CLIP_STD
from mmtrain.nn import TransformerConfig
from mmtrain.nn.flops import FlopCount
from tests.parallel.tiny_clip import tiny_config

STEM = {"patch_size": 8, "stem_channels": (8, 12, 16)}


def build(**fields: Any) -> VisionTower:
    core = TransformerConfig(dim=24, num_layers=2, num_heads=2)
    config = VisionConfig(**({"transformer": core, "image_size": 32} | STEM | fields))
    tower = VisionTower(config, embed_dim=20)
    tower.init_weights(torch.Generator().manual_seed(0))
    return tower


def stem_of(tower: VisionTower) -> ConvStem:
    stem = tower.embed.patch  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert isinstance(stem, ConvStem)
    return stem


def images(height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_it_is_normalisation_and_convolutions(bias: bool, size: tuple[int, int]) -> None:
    stem = stem_of(build(patch_bias=bias)).double()
    x = images(*size)
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    want = (x.double() / 255 - mean) / std
    for part in stem.halvings:
        want = F.conv2d(want, part.convolution.weight, stride=2, padding=1)
        want = F.relu(part.norm(want.movedim(1, -1))).movedim(-1, 1)
    want = stem.projection(want.flatten(2).mT)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        got = stem(x.contiguous(memory_format=memory_format))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)  # mean and std are fp32's there
    assert got.shape == (3, size[0] * size[1] // 64, 24)


@pytest.mark.parametrize(("pixel", "is_seen"), [(8, False), (9, True), (23, True), (24, False)])
def test_a_token_sees_seven_pixels_each_way_of_its_first(pixel: int, is_seen: bool) -> None:
    """Of a patch of 8: the third one down and across begins at pixel 16."""
    stem, x = stem_of(build()), images()
    before = stem(x)[:, 2 * 4 + 2]
    x[:, :, pixel, pixel] ^= 255
    assert torch.equal(stem(x)[:, 2 * 4 + 2], before) != is_seen


def test_dropped_patches_leave_the_others_as_they_are() -> None:
    stem, x = stem_of(build()), images()
    kept = torch.tensor([[0, 5, 15], [2, 3, 4], [15, 1, 0]])
    whole = stem(x)
    found = stem(x, kept)
    wanted = torch.stack([whole[row, kept[row]] for row in range(3)])
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_weights_begin_so_that_a_layer_keeps_its_scale() -> None:
    """He et al. 2015, arXiv:1502.01852, equation 10; the map as that of patches."""
    tower = build(stem_channels=(64, 64, 64), patch_bias=True)
    for part in stem_of(tower).halvings:
        weight = part.convolution.weight
        assert weight.std().item() == pytest.approx((2 / (9 * weight.size(1))) ** 0.5, rel=0.1)
        assert part.norm.weight.eq(1).all() and part.norm.bias.eq(0).all()
    linear = stem_of(tower).projection
    for x in (linear.weight, linear.bias):
        assert 0.9 / 8 < x.abs().max().item() <= 1 / 8


@pytest.mark.parametrize("side", [32, 64])
def test_its_flops_are_counted(side: int) -> None:
    config = tiny_config(image_size=side, **STEM)
    model = Clip(config).init_weights(0)
    with FlopCount() as count, torch.no_grad():
        model.vision(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    assert count.total == clip_flops(config).image


def test_a_fused_model_has_the_same_features() -> None:
    model = Clip(tiny_config(**STEM)).init_weights(0).eval()
    x = images(32, 32)
    with torch.no_grad():
        want = model.encode_image(x)
        got = fused_clip(model).encode_image(x)
        rounded = fused_clip(model, dtype=torch.bfloat16).encode_image(x)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert nn.functional.cosine_similarity(rounded, want).min() > 0.999


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stem_channels": (8, 8)}, r"stem_channels = \[8, 8\] makes patches of 2\^2 = 4 pixels"),
        ({"stem_channels": (8, 0, 8)}, r"stem_channels = \[8, 0, 8\] must be counts"),
        ({"patch_size": 7, "image_size": 28}, r"= 8 pixels, one halving each, but patch_size = 7"),
    ],
)
def test_mistakes_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(**fields)


def test_forms_that_have_no_stem_say_so() -> None:
    config = tiny_config(**STEM)
    for write in (config_to_open_clip, config_to_hf):
        with pytest.raises(UsageError, match=r"vision\.stem_channels"):
            write(dataclasses.replace(config, init_logit_bias=None))
