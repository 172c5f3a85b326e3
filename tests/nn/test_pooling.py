"""Pools against indexing, and attention pooling against timm's."""

import pytest
import torch
from torch import nn

from mmtrain.nn import AttentionPool, pool_tokens

X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
LENGTH = torch.tensor([5, 1, 3])


def test_single_tokens():
    assert torch.equal(pool_tokens(X, "first"), X[:, 0])
    assert torch.equal(pool_tokens(X, "last", length_B=LENGTH), X[:, -1])
    want = torch.stack([X[0, 4], X[1, 0], X[2, 2]])
    assert torch.equal(pool_tokens(X, "end", length_B=LENGTH), want)


def test_means_leave_out_what_is_not_counted():
    torch.testing.assert_close(pool_tokens(X, "mean", skip=2), X[:, 2:].mean(1))
    want = torch.stack([X[0].mean(0), X[1, 0], X[2, :3].mean(0)])
    torch.testing.assert_close(pool_tokens(X, "mean", length_B=LENGTH), want)
    length = torch.tensor([5, 3, 4])
    want = torch.stack([X[b, 1:n].mean(0) for b, n in enumerate(length)])
    torch.testing.assert_close(pool_tokens(X, "mean", length_B=length, skip=1), want)


def test_gradients_reach_only_the_pooled_tokens():
    x = X.clone().requires_grad_()
    pool_tokens(x, "end", length_B=LENGTH).sum().backward()
    assert x.grad is not None and x.grad.sum(-1).count_nonzero() == 3


def test_attention_pooling_equals_timms():
    from timm.layers.attention_pool import AttentionPoolLatent

    torch.manual_seed(0)
    theirs = AttentionPoolLatent(12, num_heads=3, mlp_ratio=2.0, norm_layer=nn.LayerNorm).double()
    ours = AttentionPool(12, num_heads=3, ff_dim=24, norm=nn.LayerNorm(12)).double()
    state = theirs.state_dict()
    k_weight, v_weight = state.pop("kv.weight").chunk(2)
    k_bias, v_bias = state.pop("kv.bias").chunk(2)
    names = {"proj": "o", "mlp.fc1": "feed_forward.up", "mlp.fc2": "feed_forward.down"}
    renamed = {"query": state.pop("latent").flatten()}
    renamed |= {"k.weight": k_weight, "v.weight": v_weight, "k.bias": k_bias, "v.bias": v_bias}
    for key, value in state.items():
        stem, _, leaf = key.rpartition(".")
        renamed[f"{names.get(stem, stem)}.{leaf}"] = value
    ours.load_state_dict(renamed)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_unknown_pools_and_missing_lengths_are_refused():
    with pytest.raises(ValueError, match='pool = "max" is unknown'):
        pool_tokens(X, "max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match='"end" needs the length'):
        pool_tokens(X, "end")
