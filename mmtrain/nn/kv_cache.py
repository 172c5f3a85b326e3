"""Preallocated keys and values of the tokens seen so far."""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of one attention layer, sized for its key heads.

    >>> cache = KVCache(batch_size=2, max_length=8, num_kv_heads=1, head_dim=4)
    >>> k_BSKH, v_BSKH = cache.update(torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, 4))
    >>> cache.length, tuple(k_BSKH.shape)
    (3, (2, 3, 1, 4))
    """

    def __init__(
        self,
        *,
        batch_size: int,
        max_length: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch_size, max_length, num_kv_heads, head_dim)
        self.k_BSKH = torch.zeros(shape, dtype=dtype, device=device)
        self.v_BSKH = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor]:
        """Append T tokens; returns all keys and values so far, [B, S, K, H].

        Raises:
            ValueError: the cache is too short.
        """
        stop = self.length + k_BTKH.size(1)
        if stop > self.k_BSKH.size(1):
            raise ValueError(
                f"a KV cache of max_length = {self.k_BSKH.size(1)} cannot hold {stop} tokens"
            )
        self.k_BSKH[:, self.length : stop] = k_BTKH
        self.v_BSKH[:, self.length : stop] = v_BTKH
        self.length = stop
        return self.k_BSKH[:, :stop], self.v_BSKH[:, :stop]
