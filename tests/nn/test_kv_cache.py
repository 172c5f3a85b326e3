"""KVCache: its own example, and its limit."""

import doctest

import pytest
import torch

from mmtrain.nn import KVCache, kv_cache


def test_the_example_in_its_docstring_runs():
    result = doctest.testmod(kv_cache, raise_on_error=True)
    assert result.attempted >= 3


def test_tokens_come_back_in_order_and_no_more_than_fit():
    cache = KVCache(batch_size=1, max_length=3, num_kv_heads=2, head_dim=4)
    k, v = torch.randn(2, 1, 3, 2, 4).unbind(0)
    cache.update(k[:, :2], v[:, :2])
    all_k, all_v = cache.update(k[:, 2:], v[:, 2:])
    assert torch.equal(all_k, k) and torch.equal(all_v, v)
    with pytest.raises(ValueError, match="max_length = 3 cannot hold 4 tokens"):
        cache.update(k[:, :1], v[:, :1])
