"""Keys and values of the tokens seen so far, and where these tokens stand."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mmtrain.nn.rope import RopeTable


class LayerCache(Protocol):
    """What one attention layer asks of its cache."""

    def update(self, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor]:
        """Append T tokens -> all keys and values so far, each [B, S, K, H]."""
        ...


class KVCache:
    """Preallocated keys and values of one attention layer, sized for its key heads.

    A head's keys lie one after another, so that a step of decoding reads them without a copy.

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
        shape = (batch_size, num_kv_heads, max_length, head_dim)
        self.k_BKSH = torch.zeros(shape, dtype=dtype, device=device)
        self.v_BKSH = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor]:
        """Append T tokens; returns all keys and values so far, [B, S, K, H].

        Raises:
            ValueError: the cache is too short.
        """
        start, stop = self.length, self.length + k_BTKH.size(1)
        if stop > self.k_BKSH.size(2):
            raise ValueError(
                f"a KV cache of max_length = {self.k_BKSH.size(2)} cannot hold {stop} tokens"
            )
        self.k_BKSH[:, :, start:stop] = k_BTKH.transpose(1, 2)
        self.v_BKSH[:, :, start:stop] = v_BTKH.transpose(1, 2)
        self.length = stop
        return self.k_BKSH[:, :, :stop].transpose(1, 2), self.v_BKSH[:, :, :stop].transpose(1, 2)

    def take(self, other: "KVCache", *, to_B: Tensor, from_B: Tensor) -> None:
        """Hold in the rows to_B what the rows from_B of another cache hold."""
        stop = other.length
        self.k_BKSH[to_B, :, :stop] = other.k_BKSH[from_B, :, :stop]
        self.v_BKSH[to_B, :, :stop] = other.v_BKSH[from_B, :, :stop]
        self.length = stop

    def select(self, row_B: Tensor) -> None:
        """Make row i what row row_B[i] was; rows may repeat, and their number may change."""
        self.k_BKSH = self.k_BKSH.index_select(0, row_B)
        self.v_BKSH = self.v_BKSH.index_select(0, row_B)


class GivenKV:
    """Keys and values that stand before a text's own, gradients kept: a learned prefix.

    For one pass of training: nothing is kept, so that a block may be computed twice.
    """

    def __init__(self, k_BSKH: Tensor, v_BSKH: Tensor) -> None:
        self.k_BSKH, self.v_BSKH = k_BSKH, v_BSKH

    def update(self, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor]:
        """The given ones and T more behind them, [B, S, K, H]; the next call begins anew."""
        k_BSKH = torch.cat([self.k_BSKH.to(k_BTKH.dtype), k_BTKH], dim=1)
        v_BSKH = torch.cat([self.v_BSKH.to(v_BTKH.dtype), v_BTKH], dim=1)
        return k_BSKH, v_BSKH


class DecoderCache:
    """The caches of all layers, and each row's positions: rows may have different lengths.

    All rows fill the same slots; a slot that is padding in a row has position -1 there, is seen by
    nobody and counts nowhere. So a row's tokens have the positions that they would have alone.

    Args:
        layers: one per layer of the whole stack.
        batch_size: rows.
        max_length: slots.
        device: where the positions are needed.
    """

    def __init__(
        self,
        layers: Sequence[LayerCache],
        *,
        batch_size: int,
        max_length: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.layers = layers
        self.position_BS = torch.full((batch_size, max_length), -1, device=device)
        self.length_B = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.segment_BS: Tensor | None = None
        self.num_slots = 0
        self.is_padded = False
        self.ropes: tuple[RopeTable | None, RopeTable | None] | None = None
        """Of the positions 0 to max_length, for layers that see all and for local ones, so that no
        step makes them anew. None: make them."""

    @property
    def positions(self) -> Tensor:
        """Positions of all slots in use [B, S], -1 for padding."""
        return self.position_BS[:, : self.num_slots]

    def append(
        self,
        num_tokens: int,
        *,
        real_BT: Tensor | None = None,
        position_BT: Tensor | None = None,
    ) -> Tensor:
        """Take the next slots -> positions of their tokens [B, T], 0 where they are padding.

        Args:
            num_tokens: T.
            real_BT: False for padding. None: all are tokens.
            position_BT: positions of the tokens. None: each row counts on.

        Raises:
            ValueError: the cache is too short.
        """
        stop = self.num_slots + num_tokens
        if stop > self.position_BS.size(1):
            raise ValueError(
                f"a KV cache of max_length = {self.position_BS.size(1)} cannot hold {stop} tokens"
            )
        slots = self.position_BS[:, self.num_slots : stop]
        self.num_slots = stop
        if real_BT is None:
            if position_BT is None:
                step_T = torch.arange(num_tokens, device=self.length_B.device)
                position_BT = self.length_B[:, None] + step_T
            slots.copy_(position_BT)
            self.length_B = self.length_B + num_tokens
            return position_BT
        self.is_padded = True
        if position_BT is None:
            position_BT = self.length_B[:, None] + real_BT.cumsum(1) - 1
        slots.copy_(position_BT.masked_fill(~real_BT, -1))
        self.length_B = self.length_B + real_BT.sum(1)
        return position_BT.masked_fill(~real_BT, 0)

    def append_segments(self, segment_BT: Tensor) -> Tensor:
        """Note the segment ids of tokens about to be appended -> those of all slots [B, S]."""
        earlier = () if self.segment_BS is None else (self.segment_BS,)
        self.segment_BS = torch.cat([*earlier, segment_BT], dim=1)
        return self.segment_BS

    def begin_as(self, rows: Sequence[tuple["DecoderCache", int]]) -> None:
        """Begin an empty cache, row i with what a row of another one holds; those stay as they are.

        So what several texts begin with is read once. All hold as many slots.
        """
        assert self.num_slots == 0, "it is begun"
        for other in {id(one): one for one, _ in rows}.values():
            places = [(to, row) for to, (one, row) in enumerate(rows) if one is other]
            to_B, from_B = torch.tensor(places, device=self.length_B.device).unbind(1)
            for layer, given in zip(self.layers, other.layers, strict=True):
                assert isinstance(layer, KVCache) and isinstance(given, KVCache)
                layer.take(given, to_B=to_B, from_B=from_B)
            self.position_BS[to_B, : other.num_slots] = other.positions[from_B]
            self.length_B[to_B] = other.length_B[from_B]
            self.num_slots = other.num_slots
            self.is_padded = self.is_padded or other.is_padded
            if other.segment_BS is not None:
                if self.segment_BS is None:
                    shape = (self.length_B.size(0), other.num_slots)
                    self.segment_BS = other.segment_BS.new_zeros(shape)
                self.segment_BS[to_B] = other.segment_BS[from_B]

    def select(self, row_B: Tensor) -> None:
        """Make row i what row row_B[i] was; rows may repeat, and their number may change."""
        for layer in self.layers:
            assert isinstance(layer, KVCache), "a given prefix has the same rows for ever"
            layer.select(row_B)
        self.position_BS = self.position_BS.index_select(0, row_B)
        self.length_B = self.length_B.index_select(0, row_B)
        if self.segment_BS is not None:
            self.segment_BS = self.segment_BS.index_select(0, row_B)

    def rewind(self, num_slots: int) -> None:
        """Forget all slots but the first `num_slots`."""
        for layer in self.layers:
            assert isinstance(layer, KVCache), "a given prefix only grows"
            layer.length = num_slots
        self.position_BS[:, num_slots:] = -1
        self.num_slots = num_slots
        self.length_B = (self.positions >= 0).sum(1)
        if self.segment_BS is not None:
            self.segment_BS = self.segment_BS[:, :num_slots]
