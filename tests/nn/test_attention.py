"""attend() in its two forms against softmax(q k^T / sqrt(H)) v written out; masks; the cache."""

import math

import pytest
import torch
from torch import Tensor

from mmtrain.nn import Attention, KVCache, Mask, attend
from mmtrain.nn.attention import _attend_fused, _attend_plain
from mmtrain.nn.masks import block_allowed, causal_allowed, key_length_allowed, prefix_allowed
from mmtrain.nn.rope import rope_1d

B, T, N, H = 2, 7, 6, 8
CPU = torch.device("cpu")
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, -1, -1]])


def naive(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """One head, one query at a time, in fp64."""
    q, k, v = (x.double() for x in (q, k, v))
    out = torch.zeros_like(q)
    group = q.size(2) // k.size(2)
    for b in range(q.size(0)):
        for n in range(q.size(2)):
            for t in range(q.size(1)):
                keys, values = k[b, :, n // group], v[b, :, n // group]
                score = keys @ q[b, t, n] / math.sqrt(q.size(-1))
                if allowed is not None:
                    seen = allowed.expand(q.size(0), q.size(1), k.size(1))[b, t]
                    score = score.masked_fill(~seen, -math.inf)
                out[b, t, n] = score.softmax(0) @ values
    return out


MASKS = {
    "full": (Mask(), None),
    "causal": (Mask(causal=True), causal_allowed(T, T, device=CPU)),
    "causal, given": (Mask(allowed=causal_allowed(T, T, device=CPU)),) * 2,
    "prefix": (Mask(allowed=prefix_allowed(torch.tensor([3, 1]), T)),) * 2,
    "block": (Mask(allowed=block_allowed(SEGMENTS)),) * 2,
    "lengths": (Mask(allowed=key_length_allowed(torch.tensor([7, 4]), T)),) * 2,
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("num_kv_heads", [6, 2, 1])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_both_forms_equal_the_formula_with_gradients(mask, num_kv_heads, dtype):
    given, allowed = MASKS[mask]
    if isinstance(allowed, Mask):
        allowed = allowed.allowed
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, T, N, H), (B, T, num_kv_heads, H), (B, T, num_kv_heads, H)]
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    wide = [x.double().requires_grad_() for x in inputs]
    want = naive(*wide, allowed)
    pull = torch.randn(want.shape, generator=generator).to(dtype)
    want_grads = torch.autograd.grad(want, wide, pull.double())
    for form in (_attend_plain, _attend_fused, attend):
        leaves = [x.clone().requires_grad_() for x in inputs]
        got = form(*leaves, given)
        assert got.dtype == dtype and got.shape == (B, T, N, H)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[dtype])
        for x, y in zip(torch.autograd.grad(got, leaves, pull), want_grads, strict=True):
            torch.testing.assert_close(x.double(), y, rtol=0, atol=3 * TOLERANCE[dtype])


def test_forms_agree_where_queries_and_keys_differ_in_number():
    """Cross-attention, and queries behind a cache."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(B, 3, N, H, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, B, T, 2, H, generator=generator, dtype=torch.float64)
    for allowed in (None, causal_allowed(3, T, device=CPU)):
        want = naive(q, k, v, allowed)
        for form in (_attend_plain, _attend_fused):
            torch.testing.assert_close(form(q, k, v, Mask(allowed=allowed)), want)


def test_a_causal_flag_with_fewer_queries_than_keys_is_refused():
    """torch's flag would align the queries to the first keys."""
    q, k = torch.zeros(1, 2, 1, 4), torch.zeros(1, 5, 1, 4)
    with pytest.raises(AssertionError, match="T = S"):
        attend(q, k, k, Mask(causal=True))


def test_which_form_runs_is_a_table_of_device_dtype_and_length(monkeypatch):
    ran, table = [], {("cpu", torch.bfloat16): 20, ("cpu", torch.float32): 9}
    monkeypatch.setattr("mmtrain.nn.attention.PLAIN_UP_TO", table)
    for name in ("_attend_plain", "_attend_fused"):
        monkeypatch.setattr(
            f"mmtrain.nn.attention.{name}", lambda *given, name=name: ran.append(name)
        )
    for (device, dtype), longest in table.items():
        for length in (longest, longest + 1):
            x = torch.zeros(1, length, 1, 4, dtype=dtype, device=device)
            attend(x[:, :1], x, x, Mask())
    assert ran == ["_attend_plain", "_attend_fused"] * len(table)


def test_a_mask_cannot_be_two_things():
    with pytest.raises(ValueError, match="causal or given"):
        Mask(causal=True, allowed=torch.ones(1, 1, 1, dtype=torch.bool))


def test_masks_by_their_rules():
    """Every entry of the small masks, from the rule in words."""
    causal = causal_allowed(2, 5, device=CPU)[0]
    assert causal.tolist() == [[True] * 4 + [False], [True] * 5]
    prefix = prefix_allowed(torch.tensor([3, 1]), T)
    block = block_allowed(SEGMENTS)
    for b in range(B):
        for t in range(T):
            for s in range(T):
                assert prefix[b, t, s] == (s <= t or s < (3, 1)[b])
                own, other = SEGMENTS[b, t].item(), SEGMENTS[b, s].item()
                if own < 0 or other < 0:
                    expected = t == s
                elif own == 0:
                    expected = other == 0
                else:
                    expected = other == 0 or (own == other and s <= t)
                assert block[b, t, s] == expected, (b, t, s)


def layer(**changes) -> Attention:
    torch.manual_seed(2)
    fields = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6} | changes
    return Attention(16, **fields).double()


def test_attention_is_the_reference_of_its_projections():
    """GQA with a head_dim of its own, rotary positions, no biases."""
    attention = layer(qkv_bias=False, out_bias=False)
    assert attention.q.bias is None and attention.o.bias is None
    x = torch.randn(B, T, 16, dtype=torch.float64)
    q, k, v = (linear(x).view(B, T, -1, 6) for linear in (attention.q, attention.k, attention.v))
    assert q.size(2) == 4 and k.size(2) == v.size(2) == 2
    want = attention.o(naive(q, k, v, causal_allowed(T, T, device=CPU)).flatten(2))
    torch.testing.assert_close(attention(x, mask=Mask(causal=True)), want)


def test_query_and_key_norms_act_per_head_and_before_the_rotation():
    attention = layer(q_norm=torch.nn.LayerNorm(6), k_norm=torch.nn.LayerNorm(6)).double()
    with torch.no_grad():
        attention.q_norm.weight.uniform_(0.5, 2.0)
    x = torch.randn(B, T, 16, dtype=torch.float64)
    table = rope_1d(torch.arange(T), 6)
    cos, sin = (part.double()[:, None] for part in table)

    def rotated(y: Tensor) -> Tensor:
        return y * cos + torch.cat([y[..., 3:], y[..., :3]], -1) * sin

    q = rotated(attention.q_norm(attention.q(x).view(B, T, 4, 6)))
    k = rotated(attention.k_norm(attention.k(x).view(B, T, 2, 6)))
    want = attention.o(naive(q, k, attention.v(x).view(B, T, 2, 6), None).flatten(2))
    torch.testing.assert_close(attention(x, mask=Mask(), rope=table), want)


def test_cross_attention_reads_keys_and_values_from_its_context():
    attention = layer(context_dim=10)
    x = torch.randn(B, T, 16, dtype=torch.float64)
    context = torch.randn(B, 5, 10, dtype=torch.float64)
    q = attention.q(x).view(B, T, 4, 6)
    k, v = (linear(context).view(B, 5, 2, 6) for linear in (attention.k, attention.v))
    want = attention.o(naive(q, k, v, None).flatten(2))
    torch.testing.assert_close(attention(x, context, mask=Mask()), want)


def test_multi_head_attention_equals_torchs():
    """The same weights in torch.nn.MultiheadAttention, causal."""
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True).double()
    ours = layer(num_kv_heads=4, head_dim=4)
    weights = theirs.in_proj_weight.detach().chunk(3)
    biases = theirs.in_proj_bias.detach().chunk(3)
    for linear, weight, bias in zip((ours.q, ours.k, ours.v), weights, biases, strict=True):
        linear.weight.data, linear.bias.data = weight, bias
    ours.o.load_state_dict(theirs.out_proj.state_dict())
    x = torch.randn(B, T, 16, dtype=torch.float64)
    mask = torch.full((T, T), -math.inf, dtype=torch.float64).triu(1)
    want = theirs(x, x, x, attn_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(ours(x, mask=Mask(causal=True)), want)


@pytest.mark.parametrize("steps", [[1] * T, [3, 1, 3], [7]])
def test_a_cache_gives_the_uncached_result(steps):
    """In any cut into calls; positions count on."""
    attention = layer()
    x = torch.randn(B, T, 16, dtype=torch.float64)
    table = rope_1d(torch.arange(T), 6)
    want = attention(x, mask=Mask(causal=True), rope=table)
    cache = KVCache(batch_size=B, max_length=T, num_kv_heads=2, head_dim=6, dtype=torch.float64)
    parts, start = [], 0
    with torch.no_grad():
        for step in steps:
            now = slice(start, start + step)
            mask = Mask(allowed=causal_allowed(step, start + step, device=CPU))
            rope = (table[0][now], table[1][now])
            parts.append(attention(x[:, now], mask=mask, rope=rope, cache=cache))
            start += step
    assert cache.length == T
    torch.testing.assert_close(torch.cat(parts, 1), want)


def test_bf16_stays_bf16_and_near_fp32():
    """Autocast computes in bf16, whichever form runs, and gradients come back in fp32."""
    attention = layer().float()
    x = torch.randn(B, T, 16)
    want = attention(x, mask=Mask(causal=True))
    with torch.autocast("cpu", torch.bfloat16):
        got = attention(x, mask=Mask(causal=True))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0, atol=2e-2)
    got.float().sum().backward()
    assert attention.q.weight.grad.dtype == torch.float32
