"""Rollout: the core's own attention probabilities, multiplied as the paper says, read off where
each kind of tower pools."""

import pytest
import torch
from torch import Tensor

from mmtrain.eval.look.attention_shares import attention_shares
from mmtrain.eval.look.rollout import attention_rollout
from mmtrain.models import Clip, ClipConfig
from mmtrain.models.text import TextConfig
from mmtrain.models.vision import VisionConfig
from mmtrain.nn import TransformerConfig
from mmtrain.nn.attention import Attention
from mmtrain.nn.masks import Mask, causal_allowed
from mmtrain.nn.norm import build_norm
from mmtrain.nn.rope import rope_1d

POOLS = (
    {"pool": "first", "num_registers": 2},
    {"pool": "mean", "num_registers": 1},
    {"pool": "mean", "class_token": False, "positions": "rope_2d"},
    {"pool": "attention", "class_token": False, "pool_norm": "before", "num_registers": 1},
)


def clip(num_layers: int = 2, **fields) -> Clip:
    core = TransformerConfig(dim=16, num_layers=num_layers, num_heads=2)
    vision = VisionConfig(transformer=core, image_size=16, patch_size=8, **fields)
    text = TextConfig(transformer=core, vocab_size=32, context_length=6, end_token_id=31)
    return Clip(ClipConfig(vision=vision, text=text, embed_dim=12)).init_weights(0).eval()


def images(height: int = 24, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("mask", ["full", "causal", "allowed"])
def test_the_shares_are_those_that_the_layer_mixes_by(kv_heads: int, mask: str):
    """With values that are the same in all heads, the mean over the heads is all there is to it."""
    torch.manual_seed(0)
    layer = Attention(
        24,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=6,
        q_norm=build_norm("rms", 6, eps=1e-6),
        k_norm=build_norm("rms", 6, eps=1e-6),
    )
    with torch.no_grad():
        layer.v.weight.copy_(layer.v.weight[:6].repeat(kv_heads, 1))
        layer.v.bias.copy_(layer.v.bias[:6].repeat(kv_heads))
        layer.o.weight.copy_(torch.eye(6).repeat(4, 4))
        layer.o.bias.zero_()
        x_BTD = torch.randn(2, 5, 24)
        rope = rope_1d(torch.arange(5), 6)
        allowed = causal_allowed(5, 5, device=x_BTD.device) | torch.eye(5, dtype=torch.bool)
        given = {
            "full": Mask(),
            "causal": Mask(causal=True),
            "allowed": Mask(allowed=allowed),
        }[mask]
        share_BTT = attention_shares(layer, x_BTD, mask=given, rope=rope)
        mixed_BTH = share_BTT @ layer.v(x_BTD)[..., :6]
        got_BTH = layer(x_BTD, mask=given, rope=rope)[..., :6] / 4
    torch.testing.assert_close(share_BTT.sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(mixed_BTH, got_BTH)


@pytest.mark.parametrize("fields", POOLS)
def test_maps_are_shares(fields):
    maps = attention_rollout(clip(**fields), images())
    assert maps.shape == (2, 3, 2) and maps.dtype == torch.float32 and not maps.requires_grad
    assert (maps > 0).all() and (maps.sum((1, 2)) < 1 + 1e-6).all()
    prefix = fields.get("num_registers", 0) + fields.get("class_token", True)
    assert ((maps.sum((1, 2)) < 0.999) == bool(prefix)).all()


def test_the_product_is_the_papers():
    """Eq. 1 by hand: A = W / 2 + I / 2, the last layer's on the left, the class token's row."""
    model = clip(num_layers=3)
    seen: list[Tensor] = []
    core = model.vision.transformer
    for block in core.blocks.values():
        block.attention.register_forward_pre_hook(
            lambda layer, inputs, told: seen.append(
                attention_shares(layer, inputs[0], mask=told["mask"]).double()
            ),
            with_kwargs=True,
        )
    maps = attention_rollout(model, images())
    first, second, third = (share / 2 + torch.eye(7).double() / 2 for share in seen)
    expected = (third @ second @ first)[:, 0, 1:].view(2, 3, 2).float()
    torch.testing.assert_close(maps.detach(), expected.detach())


def test_without_attention_the_mean_looks_everywhere_alike():
    """Keys of zeros: every token takes in all alike, so every patch has an equal share."""
    model = clip(pool="mean", class_token=False)
    for block in model.vision.transformer.blocks.values():
        torch.nn.init.zeros_(block.attention.k.weight)
        torch.nn.init.zeros_(block.attention.k.bias)
    torch.testing.assert_close(attention_rollout(model, images()), torch.full((2, 3, 2), 1 / 6))


def test_attention_pooling_decides_where_the_layers_do_not_mix():
    """A layer that lets each token see itself alone leaves the pool's own weights."""
    model = clip(num_layers=1, pool="attention", class_token=False, pool_norm="before")
    attention = model.vision.transformer.blocks["0"].attention
    torch.nn.init.zeros_(attention.k.weight)
    torch.nn.init.zeros_(attention.k.bias)
    before = attention_rollout(model, images())
    torch.nn.init.zeros_(model.vision.head.pool.k.weight)
    after = attention_rollout(model, images())
    torch.testing.assert_close(after, torch.full((2, 3, 2), 1 / 6))
    assert (before - after).abs().max() > 1e-3


def test_the_model_is_left_as_it_was():
    model = clip(pool="attention", class_token=False, pool_norm="before")
    expected = model.encode_image(images())
    attention_rollout(model, images())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model.encode_image(images()), expected)
