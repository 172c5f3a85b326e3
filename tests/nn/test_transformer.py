"""The stack against short references written out, its masks and caches, its tables of weights."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.nn import Mask, Transformer, TransformerConfig
from mmtrain.nn.transformer import depth_keep

B, T, D = 2, 7, 16
CPU = torch.device("cpu")


def build(**fields) -> Transformer:
    config = TransformerConfig(**({"dim": D, "num_layers": 2, "num_heads": 4} | fields))
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    with torch.no_grad():  # biases and scales that are not 0 and 1
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.double()


def tokens(seed: int = 2) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed)).double()


def heads_attention(block, x: Tensor, *, causal: bool) -> Tensor:
    """Multi-head attention by torch's function on the block's own projections."""
    a = block.attention
    q, k, v = (p(x).unflatten(-1, (4, -1)).transpose(1, 2) for p in (a.q, a.k, a.v))
    return a.o(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2))


def test_post_norm_is_gpt_1():
    """Radford et al. 2018: x = norm(x + attention(x)); x = norm(x + mlp(x)), no final norm."""
    model = build(norm_order="post", mask="causal")
    x = want = tokens()
    for block in model.blocks.values():
        want = block.norm1(want + heads_attention(block, want, causal=True))
        hidden = F.gelu(block.feed_forward.up(want))
        want = block.norm2(want + block.feed_forward.down(hidden))
    got = model(x, mask=model.build_mask(T, device=CPU))
    torch.testing.assert_close(got, want)


def test_pre_norm_is_the_vision_transformer():
    """Dosovitskiy et al. 2020, Eq. 2 and 3, with layer scale (Touvron et al. 2021, Eq. 4)."""
    model = build(layer_scale=0.1)
    x = want = tokens()
    for block in model.blocks.values():
        want = want + block.scale1.scale * heads_attention(block, block.norm1(want), causal=False)
        hidden = F.gelu(block.feed_forward.up(block.norm2(want)))
        want = want + block.scale2.scale * block.feed_forward.down(hidden)
    torch.testing.assert_close(model(x, mask=model.build_mask(T, device=CPU)), want)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_cross_attention_stands_between_the_two_branches(order):
    model = build(context_dim=10, num_layers=1, norm_order=order, layer_scale=0.5)
    block = model.blocks["0"]
    x, context = tokens(), torch.randn(B, 5, 10, dtype=torch.float64)
    allowed = torch.tensor([[True, True, False, True, False]])[None]

    def branch(x, norm, scale, function):
        if order == "pre":
            return x + scale.scale * function(norm(x))
        return norm(x + scale.scale * function(x))

    cross = lambda y: block.cross_attention(y, context[:, allowed[0, 0]], mask=Mask())  # noqa: E731
    want = branch(x, block.norm1, block.scale1, lambda y: heads_attention(block, y, causal=False))
    want = branch(want, block.norm_cross, block.scale_cross, cross)
    want = branch(want, block.norm2, block.scale2, block.feed_forward)
    got = model(x, mask=Mask(), context_BSD=context, context_mask=Mask(allowed=allowed))
    torch.testing.assert_close(got, want)


def test_stochastic_depth_scales_each_samples_branches():
    model = build(stochastic_depth=0.5)
    x, keep = tokens(), torch.tensor([[[1.0, 0.0], [2.0, 1.0]], [[0.0, 1.5], [1.0, 0.0]]])
    want = x
    for layer, block in enumerate(model.blocks.values()):
        a, f = keep[:, layer].double().unbind(1)
        want = want + a[:, None, None] * heads_attention(block, block.norm1(want), causal=False)
        want = want + f[:, None, None] * block.feed_forward(block.norm2(want))
    torch.testing.assert_close(model(x, mask=Mask(), keep_BL2=keep), want)


def test_depth_factors_grow_linearly_and_average_to_one():
    uniform = torch.rand(20_000, 4, 2, generator=torch.Generator().manual_seed(0))
    keep = depth_keep(uniform, rate=0.3)
    for layer, rate in enumerate((0.0, 0.1, 0.2, 0.3)):
        factors = keep[:, layer]
        assert set(factors.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - rate)).item()}
        assert (factors == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
        assert factors.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(depth_keep(uniform[:, :1], rate=0.3), torch.ones(20_000, 1, 2))


PREFIX = torch.tensor([3, 2])
SEGMENT = torch.tensor([[0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2, -1]])
KINDS = {
    "causal": {},
    "prefix": {"prefix_length_B": PREFIX},
    "block": {"segment_BT": SEGMENT},
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_sees_what_its_mask_hides(kind):
    """Change one token: only those that may see it, directly or by others, change."""
    model = build(mask=kind)
    mask = model.build_mask(T, device=CPU, **KINDS[kind])
    assert mask.causal == (kind == "causal")
    allowed = mask.allowed
    if allowed is None:
        allowed = torch.ones(T, T, dtype=torch.bool).tril()[None].expand(B, -1, -1)
    reached = (allowed.double() @ allowed.double() + allowed.double()) > 0  # two layers
    base = model(tokens(), mask=mask)
    for s in range(T):
        x = tokens()
        x[:, s] = tokens(seed=3)[:, s]  # not x + 1, which a layer norm takes away again
        changed = (model(x, mask=mask) != base).any(-1)
        assert torch.equal(changed, reached[:, :, s] | (torch.arange(T) == s)), (kind, s)


@pytest.mark.parametrize("kind", ["full", "causal"])
def test_padding_keys_are_seen_by_nobody(kind):
    model, length = build(mask=kind), torch.tensor([7, 4])
    mask = model.build_mask(T, device=CPU, key_length_B=length)
    base, x = model(tokens(), mask=mask), tokens()
    x[1, 4:] = tokens(seed=3)[1, 4:]
    got = model(x, mask=mask)
    assert torch.equal(got[1, :4], base[1, :4]) and torch.equal(got[0], base[0])
    alone = model(tokens()[1:, :4], mask=model.build_mask(4, device=CPU))
    torch.testing.assert_close(got[1:, :4], alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [[3, 1, 2, 1], [3, 4], [7]])
def test_cached_equals_uncached(kind, steps):
    """The prefix, or the context, comes whole in the first call."""
    model = build(mask=kind, num_kv_heads=2)
    fields = KINDS[kind]
    if kind == "block":
        fields = {"segment_BT": SEGMENT.clone()}
        fields["segment_BT"][:, :3] = 0
    want = model(tokens(), mask=model.build_mask(T, device=CPU, **fields))
    caches, parts, start = model.build_caches(B, T), [], 0
    with torch.no_grad():
        for step in steps:
            seen = start + step
            now = dict(fields)
            if kind == "block":
                now["segment_BT"] = fields["segment_BT"][:, :seen]
            mask = model.build_mask(step, device=CPU, num_cached=start, **now)
            parts.append(model(tokens()[:, start:seen], mask=mask, caches=caches))
            start = seen
    torch.testing.assert_close(torch.cat(parts, 1), want)


def test_masks_are_flags_or_nothing_where_these_serve():
    causal, full = build(mask="causal"), build()
    assert full.build_mask(T, device=CPU) == Mask()
    assert causal.build_mask(T, device=CPU) == Mask(causal=True)
    # The newest of all tokens sees all of them.
    assert causal.build_mask(1, device=CPU, num_cached=5) == Mask()
    assert causal.build_mask(1, device=CPU) == Mask()
    behind = causal.build_mask(2, device=CPU, num_cached=3).allowed
    assert behind is not None and behind.dtype == torch.bool and behind[0].sum(1).tolist() == [4, 5]


def test_masks_ask_for_what_they_need():
    with pytest.raises(ValueError, match="needs prefix_length_B"):
        build(mask="prefix").build_mask(T, device=CPU)
    with pytest.raises(ValueError, match="segment_BT of all 9 keys"):
        build(mask="block").build_mask(T, device=CPU, segment_BT=SEGMENT, num_cached=2)


def test_a_slice_of_the_stack_keeps_names_and_layers():
    """As a pipeline stage holds it: later blocks alone give the later half of the function."""
    whole, half = build(num_layers=4, mask="causal"), build(num_layers=4, mask="causal")
    rest = build(num_layers=4, mask="causal")
    for name in ("0", "1"):
        del rest.blocks[name]
    for name in ("2", "3"):
        del half.blocks[name]
    assert set(half.state_dict()) | set(rest.state_dict()) == set(whole.state_dict())
    keep = depth_keep(torch.rand(B, 4, 2), rate=0.5)
    mask = whole.build_mask(T, device=CPU)
    middle = half(tokens(), mask=mask, keep_BL2=keep)
    got = rest(middle, mask=mask, keep_BL2=keep)
    torch.testing.assert_close(got, whole(tokens(), mask=mask, keep_BL2=keep))


W, L = 64, 8
TABLES = {  # (std of a normal, or None), (bound of a uniform, or None)
    "torch": {
        "q": (None, math.sqrt(6 / (4 * W))),
        "k": (None, math.sqrt(6 / (4 * W))),
        "v": (None, math.sqrt(6 / (4 * W))),
        "o": (None, W**-0.5),
        "up": (None, W**-0.5),
        "gate": (None, W**-0.5),
        "down": (None, 96**-0.5),
    },
    "scaled": {
        "q": (W**-0.5, None),
        "k": (W**-0.5, None),
        "v": (W**-0.5, None),
        "o": (W**-0.5 * (2 * L) ** -0.5, None),
        "up": ((2 * W) ** -0.5, None),
        "gate": ((2 * W) ** -0.5, None),
        "down": (W**-0.5 * (2 * L) ** -0.5, None),
    },
}


@pytest.mark.parametrize("init", TABLES)
def test_weights_are_drawn_by_the_table(init):
    config = TransformerConfig(
        dim=W,
        num_layers=L,
        num_heads=4,
        ff_dim=96,
        activation="swiglu",
        init=init,
        layer_scale=0.25,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    named = dict(model.named_parameters())
    for kind, (std, bound) in TABLES[init].items():
        weights = torch.cat([w.flatten() for n, w in named.items() if f".{kind}.weight" in n])
        if std is not None:
            assert weights.std().item() == pytest.approx(std, rel=0.02), kind
            assert weights.abs().max() > 3 * std, "a normal has tails"
        else:
            assert bound is not None and weights.abs().max() <= bound
            assert weights.abs().max() > 0.995 * bound, kind
            assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02), kind
        assert abs(weights.mean().item()) < 0.01
        biases = torch.cat([b for n, b in named.items() if f".{kind}.bias" in n])
        edge = {"up": W**-0.5, "gate": W**-0.5, "down": 96**-0.5}.get(kind, 0.0)
        assert biases.abs().max() <= edge and biases.abs().max() >= 0.98 * edge
    assert all((w == 1).all() for n, w in named.items() if "norm" in n and n.endswith("weight"))
    assert all((b == 0).all() for n, b in named.items() if "norm" in n and n.endswith("bias"))
    assert all((s == 0.25).all() for n, s in named.items() if n.endswith("scale"))
    again = Transformer(config)
    again.init_weights(torch.Generator().manual_seed(0))
    assert all(torch.equal(named[n], p) for n, p in again.named_parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": -1}, "num_layers = -1 must be at least 0"),
        ({"num_kv_heads": 0}, "num_kv_heads = 0 must be at least 1"),
        ({"num_heads": 3}, "num_heads = 3 must divide dim = 16, or set head_dim"),
        ({"num_kv_heads": 3}, "num_kv_heads = 3 must divide num_heads = 4"),
        ({"stochastic_depth": 1.0}, r"stochastic_depth = 1.0 must lie in \[0, 1\)"),
        ({"norm_fraction": 0.0}, r"norm_fraction = 0.0 must lie in \(0, 1\]"),
    ],
)
def test_shapes_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**({"dim": D, "num_layers": 2, "num_heads": 4} | fields))


def test_derived_sizes():
    config = TransformerConfig(dim=512, num_layers=1, num_heads=8)
    assert (config.kv_heads, config.head_size, config.hidden_dim) == (8, 64, 2048)
    gated = dataclasses.replace(config, activation="swiglu", num_kv_heads=2, head_dim=128)
    assert (gated.kv_heads, gated.head_size, gated.hidden_dim) == (2, 128, 1368)
    assert 3 * gated.hidden_dim == pytest.approx(2 * config.hidden_dim, rel=0.01)


def test_every_knob_reaches_its_part():
    """Norm kind, eps, fraction and bias also where queries and keys are normalised."""
    model = build(norm="partial_rms", norm_fraction=0.5, norm_eps=1e-3, qk_norm="partial_rms")
    block = model.blocks["0"]
    norms = (block.norm1, block.norm2, block.attention.q_norm, block.attention.k_norm)
    assert [n.num_measured for n in norms] == [8, 8, 2, 2] and {n.eps for n in norms} == {1e-3}
    plain = build(norm_bias=False, qk_norm="layer", qkv_bias=False, out_bias=False, ff_bias=False)
    assert not any(name.endswith("bias") for name, _ in plain.named_parameters())
