"""Maps of where a text is: right places, right space, and nothing changed for the image itself."""

import pytest
import torch
from torch import Tensor

from mmtrain.eval.attention_maps import encode_patches, enlarge_maps, similarity_maps
from mmtrain.models import Clip, ClipConfig
from mmtrain.models.text import TextConfig
from mmtrain.models.vision import VisionConfig
from mmtrain.nn import TransformerConfig

POOLS = (
    {"pool": "first"},
    {"pool": "first", "num_registers": 2, "positions": "rope_2d"},
    {"pool": "mean", "num_registers": 1},
    {"pool": "mean", "pool_norm": "before", "class_token": False, "positions": "none"},
    {"pool": "attention", "class_token": False, "pool_norm": "before"},
)


def clip(num_layers: int = 2, image_size: int = 16, **fields) -> Clip:
    core = TransformerConfig(dim=16, num_layers=num_layers, num_heads=2)
    vision = VisionConfig(transformer=core, image_size=image_size, patch_size=8, **fields)
    text = TextConfig(transformer=core, vocab_size=32, context_length=6, end_token_id=31)
    return Clip(ClipConfig(vision=vision, text=text, embed_dim=12)).init_weights(0).eval()


def images(height: int = 16, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("fields", POOLS)
def test_the_images_features_are_the_models(fields):
    model = clip(**fields)
    image_BE, patch_BRCE = encode_patches(model, images(24, 16))
    torch.testing.assert_close(image_BE, model.encode_image(images(24, 16)))
    assert patch_BRCE.shape == (2, 3, 2, 12)
    torch.testing.assert_close(patch_BRCE.norm(dim=-1), torch.ones(2, 3, 2))


@pytest.mark.parametrize("fields", [fields for fields in POOLS if fields["pool"] != "first"])
def test_the_only_patch_is_the_image(fields):
    """Where the patches are what is pooled, a patch that is all of the image has its feature."""
    fields = fields | {"class_token": False, "num_registers": 0}
    image_BE, patch_BRCE = encode_patches(clip(image_size=8, **fields), images(8, 8))
    torch.testing.assert_close(patch_BRCE[:, 0, 0], image_BE)


@pytest.mark.parametrize("fields", [fields for fields in POOLS if fields["pool"] != "mean"])
def test_the_last_block_keeps_a_patch_to_itself(fields):
    """So what changes in one patch shows in its place of the map and in no other."""
    model, changed = clip(num_layers=1, **fields), images(24, 16)
    changed[:, :, 8:16, 8:16] = 0
    before, after = (encode_patches(model, x)[1] for x in (images(24, 16), changed))
    moved = (before - after).abs().amax(dim=(0, 3)) > 1e-4
    assert moved.tolist() == [[False, False], [False, True], [False, False]]


def test_maps_are_cosines_by_text():
    drawn_RCE = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    patch_RCE = torch.nn.functional.normalize(drawn_RCE, dim=-1)
    text_ME = torch.stack([patch_RCE[2, 1], -patch_RCE[0, 0]])
    maps = similarity_maps(patch_RCE, text_ME)
    assert maps.shape == (2, 3, 2)
    assert maps[0].argmax() == 5 and maps[1].argmin() == 0
    torch.testing.assert_close(maps[0, 2, 1], torch.tensor(1.0))


def test_enlarged_maps_keep_their_place():
    small = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    large = enlarge_maps(small, 8, 12)
    assert large.shape == (1, 8, 12)
    assert large[0, 0, 0] == 0 and large[0, -1, -1] == 3 and large[0, 0, -1] == 1
    assert float(large[0, 2:6, :].mean()) == pytest.approx(1.5)
