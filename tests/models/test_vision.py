"""The vision tower: pixels, positions, pools, dropped patches, tables of weights."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.models import VisionConfig, VisionTower
from mmtrain.models.tower import interpolate_positions
from mmtrain.models.vision import PatchEmbed
from mmtrain.models.vision_config import CLIP_MEAN, CLIP_STD
from mmtrain.nn import TransformerConfig

D, E = 24, 20


def config(**fields) -> VisionConfig:
    core = TransformerConfig(dim=D, num_layers=2, num_heads=2)
    return VisionConfig(**({"transformer": core, "image_size": 32, "patch_size": 8} | fields))


def build(seed: int = 0, **fields) -> VisionTower:
    tower = VisionTower(config(**fields), embed_dim=E)
    tower.init_weights(torch.Generator().manual_seed(seed))
    return tower


def images(batch: int = 3, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, 3, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def normalised_convolution(embed: PatchEmbed, x: Tensor, dtype: torch.dtype) -> Tensor:
    """What published models do: pixels / 255, minus mean, over std, then Conv2d."""
    size = embed.patch_size
    mean, std = (torch.tensor(v, dtype=dtype)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    pixels = (x.to(dtype) / 255 - mean) / std
    weight = embed.weight.to(dtype).unflatten(1, (size, size, 3)).permute(0, 3, 1, 2)
    bias = None if embed.bias is None else embed.bias.to(dtype)
    return F.conv2d(pixels, weight, bias, stride=size).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_uint8_patches_equal_normalisation_and_convolution(dtype, atol, bias):
    """Value and gradient of the stored weight, which keeps its published meaning."""
    embed = build(patch_bias=bias).embed.patch.to(dtype)
    x = images()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        got = embed(x.contiguous(memory_format=memory_format))
        want = normalised_convolution(embed, x, torch.float64)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)
    pull = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((got * pull).sum(), embed.weight)
    want_sum = (normalised_convolution(embed, x, torch.float64) * pull).sum()
    (want_gradient,) = torch.autograd.grad(want_sum, embed.weight)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-4, atol=10 * atol)


@pytest.mark.parametrize("kind", ["autocast", "pure"])
def test_folding_costs_no_accuracy_in_bf16(kind):
    """Against exact arithmetic on the same bf16 weight: no worse than normalising and Conv2d there.

    32 x 32 patches: the folded bias is a sum over 3,072 terms, which bf16 constants spoil.
    """
    embed = build(patch_size=32, image_size=64).embed.patch
    with torch.no_grad():
        embed.weight += 0.02  # a common part, as trained weights have: errors no longer average out
    if kind == "pure":
        embed.bfloat16()
    rounded = embed.weight.detach().bfloat16().double()
    exact = PatchEmbed(config(patch_size=32, image_size=64)).double()
    exact.weight.data = rounded
    x = images(8, 64, 64)
    want = normalised_convolution(exact, x, torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        got = embed(x)
    assert got.dtype == torch.bfloat16
    usual = normalised_convolution(embed, x, torch.bfloat16)
    error, usual_error = ((y.double() - want).square().mean().sqrt() for y in (got, usual))
    assert error <= 1.1 * usual_error, (error.item(), usual_error.item())
    weight, bias = embed.folded()
    assert weight.dtype == bias.dtype == torch.float32


def test_images_must_be_bytes_and_whole_patches():
    tower = build()
    with pytest.raises(ValueError, match=r"images are torch\.float32 but must be uint8"):
        tower(images().float())
    with pytest.raises(ValueError, match="32x36 pixels is no multiple of 8"):
        tower(images(width=36))


def test_an_edge_is_dropped_only_on_request():
    """27 patches of 14 in 384 pixels, here 4 of 8 in 38: a convolution's own way."""
    tower = build(image_size=38, drop_edge=True)
    x = images(2, 38, 38)
    want = normalised_convolution(tower.embed.patch, x, torch.float32)
    got = tower.embed.patch(x[..., :32, :32])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(tower(x), tower(x[..., :32, :32]))
    with pytest.raises(ValueError, match="patch_size = 8 must divide image_size = 38"):
        config(image_size=38)


def test_the_tower_is_the_vit_written_out():
    """Class token and its position first, patches row by row, norms before and after."""
    tower = build(num_registers=2).double()
    embed, head = tower.embed, tower.head
    x = images()
    patches = normalised_convolution(embed.patch, x, torch.float64)
    table = embed.positional_embedding
    first = (embed.class_embedding + table[0]).expand(3, 1, -1)
    tokens = [first, embed.registers.expand(3, -1, -1), patches + table[1:]]
    y = tower.transformer(
        embed.norm(torch.cat(tokens, 1)),
        mask=tower.transformer.build_mask(19, device=torch.device("cpu")),
    )
    want = head.projection(head.norm(y[:, 0]))
    torch.testing.assert_close(tower(x), want)


def test_registers_may_have_positions_too():
    some, none, all_ = (
        build(num_registers=2, prefix_positions=kind) for kind in ("class", "none", "all")
    )
    rows = [len(tower.embed.positional_embedding) for tower in (some, none, all_)]
    assert rows == [17, 16, 18 + 1]
    all_.load_state_dict(
        some.state_dict()
        | {
            "embed.positional_embedding": torch.cat(
                [
                    some.embed.positional_embedding[:1],
                    torch.zeros(2, D),
                    some.embed.positional_embedding[1:],
                ]
            )
        }
    )
    torch.testing.assert_close(all_(images()), some(images()))
    with torch.no_grad():
        all_.embed.positional_embedding[2] += 1 + torch.rand(D)
    assert not torch.allclose(all_(images()), some(images()), atol=1e-3)


@pytest.mark.parametrize("norm_place", ["before", "after"])
@pytest.mark.parametrize("pool", ["first", "mean", "attention"])
def test_pools_read_what_they_say(pool, norm_place):
    tower = build(pool=pool, pool_norm=norm_place, num_registers=2)
    with torch.no_grad():
        tower.head.norm.weight.uniform_(0.5, 2)
    tokens = torch.randn(3, 19, D, generator=torch.Generator().manual_seed(0))
    norm, head = tower.head.norm, tower.head
    x = norm(tokens) if norm_place == "before" else tokens
    pooled = {"first": lambda: x[:, 0], "mean": lambda: x[:, 3:].mean(1)}
    y = head.pool(x[:, 3:]) if pool == "attention" else pooled[pool]()
    y = norm(y) if norm_place == "after" else y
    torch.testing.assert_close(head(tokens), head.projection(y))


def test_kept_patches_are_that_subset_with_their_own_positions():
    tower = build()
    kept = torch.tensor([[0, 3, 9, 15], [1, 2, 3, 4], [5, 7, 11, 13]])
    whole, some = tower.embed(images()), tower.embed(images(), kept)
    assert some.shape == (3, 5, D)
    for b in range(3):
        torch.testing.assert_close(some[b, 1:], whole[b, 1:][kept[b]])
        torch.testing.assert_close(some[b, 0], whole[b, 0])
    everything = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(tower(images(), kept_BP=everything), tower(images()))
    assert config(patch_dropout=0.75).num_kept == 4
    assert config(patch_dropout=0.99).num_kept == 1


@pytest.mark.parametrize("positions", ["rope", "rope_2d"])
def test_rotary_positions_follow_the_kept_patches(positions):
    """In another order, the same set: nothing but the positions tells patches apart."""
    tower = build(positions=positions, pool="mean").double()
    kept = torch.tensor([[0, 3, 9, 15]] * 3)
    swapped = kept[:, [2, 0, 3, 1]]
    torch.testing.assert_close(tower(images(), kept_BP=kept), tower(images(), kept_BP=swapped))
    blind = build(positions="none", pool="mean").double()
    blind.load_state_dict(tower.state_dict())
    assert not torch.allclose(tower(images()), blind(images()))


def test_positions_at_another_size_are_open_clips():
    from open_clip.model import resize_pos_embed

    table = torch.randn(1 + 49, 8, generator=torch.Generator().manual_seed(0))

    class Model:
        class visual:
            grid_size = (10, 4)

    state = {"visual.positional_embedding": table}
    resize_pos_embed(state, Model)
    want = state["visual.positional_embedding"][1:]
    torch.testing.assert_close(interpolate_positions(table[1:], (7, 7), (10, 4)), want)
    assert interpolate_positions(table[1:], (7, 7), (7, 7)).data_ptr() == table[1:].data_ptr()


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope", "rope_2d", "none"])
def test_other_sizes_than_the_native_one_are_encoded(positions):
    tower = build(positions=positions)
    assert tower(images(2, 40, 24)).shape == (2, E)


def test_weights_are_drawn_by_the_table():
    core = TransformerConfig(dim=64, num_layers=1, num_heads=2)
    fields = {"transformer": core, "image_size": 64, "num_registers": 40, "pool": "attention"}
    tower = VisionTower(config(**fields, projection_bias=True, patch_bias=True), embed_dim=E)
    for parameter in tower.parameters():  # whatever was there before
        parameter.data.fill_(7.0)
    tower.init_weights(torch.Generator().manual_seed(0))
    named = dict(tower.named_parameters())
    bound = (3 * 8 * 8) ** -0.5
    for name in ("embed.patch.weight", "embed.patch.bias"):
        assert 0.97 * bound < named[name].abs().max() <= bound
    for name in ("embed.registers", "embed.positional_embedding", "head.projection.weight"):
        assert named[name].std().item() == pytest.approx(64**-0.5, rel=0.05), name
    for name in ("embed.class_embedding", "head.pool.query"):
        assert named[name].std().item() == pytest.approx(64**-0.5, rel=0.3), name
    for name, width in (("q", 64), ("o", 64), ("feed_forward.up", 64), ("feed_forward.down", 256)):
        weight = named[f"head.pool.{name}.weight"]
        assert 0.97 * width**-0.5 < weight.abs().max() <= width**-0.5
        assert weight.std().item() == pytest.approx((3 * width) ** -0.5, rel=0.05)
        assert (named[f"head.pool.{name}.bias"] == 0).all()
    assert (named["head.projection.bias"] == 0).all()
    for name in ("embed.norm", "head.norm", "head.pool.norm"):
        assert (named[f"{name}.weight"] == 1).all() and (named[f"{name}.bias"] == 0).all()
    assert not any((p == 7).any() for p in named.values())


def test_the_tables_bounds_are_open_clips():
    """Not from memory: the spread of open_clip's own fresh tower, tensor by tensor."""
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    theirs = dict(VisionTransformer(64, 8, 64, 2, 2, 4.0, output_dim=64).named_parameters())
    core = TransformerConfig(dim=64, num_layers=2, num_heads=2)
    tower = VisionTower(config(transformer=core, image_size=64), embed_dim=64)
    tower.init_weights(torch.Generator().manual_seed(0))
    ours = dict(tower.named_parameters())
    pairs = {
        "conv1.weight": "embed.patch.weight",
        "positional_embedding": "embed.positional_embedding",
        "proj": "head.projection.weight",
        "transformer.resblocks.1.attn.in_proj_weight": "transformer.blocks.1.attention.q.weight",
        "transformer.resblocks.1.attn.out_proj.weight": "transformer.blocks.1.attention.o.weight",
        "transformer.resblocks.1.attn.out_proj.bias": "transformer.blocks.1.attention.o.bias",
        "transformer.resblocks.1.mlp.c_fc.weight": "transformer.blocks.1.feed_forward.up.weight",
        "transformer.resblocks.1.mlp.c_fc.bias": "transformer.blocks.1.feed_forward.up.bias",
        "transformer.resblocks.1.mlp.c_proj.weight": (
            "transformer.blocks.1.feed_forward.down.weight"
        ),
    }
    for theirs_name, ours_name in pairs.items():
        want, got = theirs[theirs_name], ours[ours_name]
        assert got.std().item() == pytest.approx(want.std().item(), rel=0.1), ours_name
        if theirs_name != "proj" and "positional" not in theirs_name:
            top = want.abs().max().item()
            assert got.abs().max().item() == pytest.approx(top, rel=0.05), ours_name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 7}, "patch_size = 7 must divide image_size = 32"),
        ({"patch_size": 0}, "patch_size = 0 must be at least 1"),
        ({"class_token": False}, 'pool = "first" needs class_token = true'),
        ({"patch_dropout": 1.0}, r"patch_dropout = 1\.0 must lie in"),
        ({"std": (0.5, 0.0, 0.5)}, "those of std above 0"),
        ({"projection": False, "projection_bias": True}, "needs projection = true"),
        (
            {"transformer": TransformerConfig(dim=D, num_layers=1, num_heads=2, mask="causal")},
            'transformer.mask = "causal" is not for this tower; use full',
        ),
        (
            {"transformer": TransformerConfig(dim=D, num_layers=1, num_heads=2, context_dim=4)},
            "context_dim = 4: a CLIP tower has nothing to look at",
        ),
        (
            {
                "transformer": TransformerConfig(dim=D, num_layers=1, num_heads=4),
                "positions": "rope_2d",
            },
            "head_dim = 6 must be a multiple of 4",
        ),
        (
            {
                "transformer": TransformerConfig(dim=D, num_layers=1, num_heads=5, head_dim=8),
                "pool": "attention",
            },
            "num_heads = 5 to divide",
        ),
    ],
)
def test_towers_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_no_projection_leaves_the_width():
    assert VisionTower(config(projection=False), embed_dim=D)(images()).shape == (3, D)


def test_sinusoidal_positions_are_the_papers():
    from mmtrain.models.tower import sinusoidal_positions

    table = sinusoidal_positions(5, 6, like=torch.zeros(1))
    for t in range(5):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (2, 2)), ((7, 7), (5, 3)), ((6, 4), (9, 8))])
def test_positions_that_train_at_another_size(old, new):
    """As products they are the resize that others see, with its gradient."""
    table = torch.randn(old[0] * old[1], 5, dtype=torch.float64, requires_grad=True)
    found = interpolate_positions(table, old, new)
    with torch.no_grad():
        torch.testing.assert_close(found, interpolate_positions(table, old, new))
    grid = table.unflatten(0, old).permute(2, 0, 1)[None]
    resized = F.interpolate(grid, size=new, mode="bicubic", antialias=True)[0].flatten(1).T
    given = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(x, table, given) for x in (found, resized))
    torch.testing.assert_close(ours, theirs)
