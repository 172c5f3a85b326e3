"""Maps of where a text is: they share out the cosine, and put each part in its place."""

import pytest
import torch
from torch import Tensor

from mmtrain.eval.look.attention_maps import ReadImage, enlarge_maps, read_images, text_maps
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


def texts(num: int = 2) -> Tensor:
    drawn_BE = torch.randn(num, 12, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.normalize(drawn_BE, dim=-1)


@pytest.mark.parametrize("fields", POOLS)
def test_maps_share_out_the_cosine(fields):
    """What the patches add is all that sets the image apart from one of equal patches."""
    model = clip(**fields)
    image = read_images(model, images(24, 16))
    torch.testing.assert_close(image.feature_BE, model.encode_image(images(24, 16)))
    maps = text_maps(model, image, texts())
    assert maps.shape == (2, 3, 2) and maps.dtype == torch.float32 and not maps.requires_grad

    token_BTD = image.token_BTD.clone()
    token_BTD[:, -6:] = token_BTD[:, -6:].mean(1, keepdim=True)
    blank = ReadImage(feature_BE=image.feature_BE, token_BTD=token_BTD, grid=image.grid)
    vision = model.vision
    rope = vision.rope_table((3, 2), None, token_BTD.device)
    mask = vision.transformer.build_mask(token_BTD.size(1), device=token_BTD.device)
    with torch.no_grad():
        end_BE = vision.head(vision.transformer.blocks["1"](token_BTD, mask=mask, rope=rope))
    cosine_B = (image.feature_BE * texts()).sum(1)
    blank_B = (torch.nn.functional.normalize(end_BE, dim=-1) * texts()).sum(1)
    assert (cosine_B - blank_B).abs().max() > 0.01
    torch.testing.assert_close(maps.sum((1, 2)), cosine_B - blank_B, atol=2e-3, rtol=0)
    # Positions still tell equal patches apart where the last block rotates by them.
    torch.testing.assert_close(text_maps(model, blank, texts()), torch.zeros(2, 3, 2))


def test_a_map_is_the_slope_where_the_last_block_does_nothing():
    """Then the mean of the patches does not change on the way, and neither does the slope."""
    model = clip(num_layers=1, pool="mean", pool_norm="after", class_token=False).double()
    block = model.vision.transformer.blocks["0"]
    for layer in (block.attention.o, block.feed_forward.down):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    image = read_images(model, images())
    x_BPD = image.token_BTD.detach().clone().requires_grad_()
    feature_BE = model.vision.head.projection(model.vision.head.norm(x_BPD.mean(1)))
    cosine_B = torch.nn.functional.cosine_similarity(feature_BE, texts().double())
    (slope_BPD,) = torch.autograd.grad(cosine_B.sum(), x_BPD)
    expected = (slope_BPD * (x_BPD - x_BPD.mean(1, keepdim=True))).sum(-1).view(2, 2, 2)
    got = text_maps(model, image, texts())
    torch.testing.assert_close(got, expected.detach().float(), atol=1e-6, rtol=1e-4)


def test_every_patch_has_its_place():
    """Without positions, patches that change places take their part of the map with them."""
    model = clip(pool="attention", positions="none", num_registers=1)
    before, pixels = images(24, 16), images(24, 16)
    pixels[:, :, 16:, :8], pixels[:, :, :8, 8:] = before[:, :, :8, 8:], before[:, :, 16:, :8]
    maps, moved = (text_maps(model, read_images(model, x), texts()) for x in (before, pixels))
    maps[:, 2, 0], maps[:, 0, 1] = maps[:, 0, 1].clone(), maps[:, 2, 0].clone()
    torch.testing.assert_close(moved, maps)
    assert maps.std() > 1e-4


def test_no_gradient_reaches_the_weights():
    model = clip(pool="first")
    text_maps(model, read_images(model, images()), texts())
    assert all(weight.grad is None for weight in model.parameters())


def test_enlarged_maps_keep_their_place():
    small = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    large = enlarge_maps(small, 8, 12)
    assert large.shape == (1, 8, 12)
    assert large[0, 0, 0] == 0 and large[0, -1, -1] == 3 and large[0, 0, -1] == 1
    assert float(large[0, 2:6, :].mean()) == pytest.approx(1.5)
