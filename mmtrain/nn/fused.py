"""Blocks for inference: the same function from fewer and larger products.

A fused stack holds the weights of q, k and v as one matrix, and those of gate and up, with learned
scales multiplied in, laid out once as the device's kernels want them. It is a copy: it does not
follow what happens to the weights afterwards, and has no gradient.

    decoder.transformer = fuse(decoder.transformer)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.nn.attention import Attention, attend
from mmtrain.nn.block import BlockNorms, TransformerBlock
from mmtrain.nn.feed_forward import Activation, FeedForward, apply_activation
from mmtrain.nn.kv_cache import KVCache, LayerCache
from mmtrain.nn.masks import Mask
from mmtrain.nn.rope import RopeTable, apply_rope
from mmtrain.nn.seams import layers_around
from mmtrain.nn.transformer import Transformer

# oneDNN's products over weights in its own layout, which torch.compile uses too. F.linear asks MKL
# for fp32, which has no AVX-512 for AMD: 100 GFLOP/s a core against 230, and with one row 16 GB of
# weights a second against 25.
_PACKED: dict[torch.dtype, str] = {
    torch.float32: "",
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}
_GELUS: dict[Activation, str] = {"gelu": "none", "gelu_tanh": "tanh"}


class FusedLinear(nn.Module):
    """Linear layers of one input side by side, and what follows on them.

    Args:
        linears: their weights are copied; outputs stand in this order.
        scale: [out], multiplied into them.
        activation: of the outputs.
        dtype: of the products. None: the weights'.
    """

    def __init__(
        self,
        linears: Sequence[nn.Linear],
        *,
        scale: Tensor | None = None,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        weight, bias = _joined(linears)
        if scale is not None:
            weight = weight * scale[:, None]
            bias = None if bias is None else bias * scale
        self.dtype = weight.dtype if dtype is None else dtype
        self.activation: Activation | None = activation
        self.weight = weight.to(self.dtype)
        self.bias = None if bias is None else bias.to(self.dtype)
        self.is_packed = _can_pack(self.weight)
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in `dtype`."""
        x = x if x.dtype == self.dtype else x.to(self.dtype)
        gelu = None if self.activation is None else _GELUS.get(self.activation)
        if self.is_packed:
            kind, how = ("none", "") if gelu is None else ("gelu", gelu)
            product = torch.ops.mkldnn._linear_pointwise
            x = product(x, self.weight, self.bias, kind, [], how)
        else:
            x, gelu = F.linear(x, self.weight, self.bias), None
        if self.activation is None or gelu is not None:
            return x
        return apply_activation(self.activation, x)


class FusedAttention(nn.Module):
    """Self-attention by one product for queries, keys and values."""

    def __init__(
        self, attention: Attention, *, scale: Tensor | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.head_dim = attention.head_dim
        self.qkv = FusedLinear([attention.q, attention.k, attention.v], dtype=dtype)
        self.o = FusedLinear([attention.o], scale=scale, dtype=dtype)
        heads = (part.out_features // self.head_dim for part in (attention.q, attention.k))
        self.num_heads, self.num_kv_heads = heads
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.norm_over_heads = attention.norm_over_heads
        self.how = {"scale": attention.scale, "cap": attention.cap}

    def _normalised(self, qk: Tensor) -> Tensor:
        """Queries and keys [B, T, N + K, H], each by its norm."""
        assert self.q_norm is not None and self.k_norm is not None
        q, k = qk[..., : self.num_heads, :], qk[..., self.num_heads :, :]
        if self.norm_over_heads:
            q = self.q_norm(q.flatten(-2)).unflatten(-1, (-1, self.head_dim))
            k = self.k_norm(k.flatten(-2)).unflatten(-1, (-1, self.head_dim))
        else:
            q, k = self.q_norm(q), self.k_norm(k)
        return torch.cat([q, k], dim=-2)

    def forward(
        self, x_BTD: Tensor, *, mask: Mask, rope: RopeTable | None, cache: LayerCache | None
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        N, K = self.num_heads, self.num_kv_heads
        qkv = self.qkv(x_BTD).unflatten(-1, (N + 2 * K, self.head_dim))
        qk, v = qkv[..., : N + K, :], qkv[..., N + K :, :]
        if self.q_norm is not None:
            qk = self._normalised(qk)
        if rope is not None:
            qk = apply_rope(qk, rope)
        q, k = qk[..., :N, :], qk[..., N:, :]
        if cache is not None:
            k, v = cache.update(k, v)
        return self.o(attend(q, k, v, mask, **self.how).flatten(-2))


class FusedFeedForward(nn.Module):
    """The feed-forward by one product for gate and up."""

    def __init__(
        self, feed_forward: FeedForward, *, scale: Tensor | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.activation: Activation = feed_forward.activation
        self.is_gated = feed_forward.gate is not None
        if feed_forward.gate is not None:
            self.up = FusedLinear([feed_forward.gate, feed_forward.up], dtype=dtype)
        else:
            self.up = FusedLinear([feed_forward.up], activation=self.activation, dtype=dtype)
        self.down = FusedLinear([feed_forward.down], scale=scale, dtype=dtype)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        up = self.up(x_BTD)
        if self.is_gated:
            gate, up = up.chunk(2, dim=-1)
            up = apply_activation(self.activation, gate).mul_(up)
        return self.down(up)


class FusedBlock(BlockNorms):
    """A block without cross-attention, as `TransformerBlock` computes it in eval mode."""

    def __init__(self, block: TransformerBlock, *, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.norm_order = block.norm_order
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.norm1_behind, self.norm2_behind = block.norm1_behind, block.norm2_behind
        scales = [None if s is None else s.scale for s in (block.scale1, block.scale2)]
        self.attention = FusedAttention(block.attention, scale=scales[0], dtype=dtype)
        self.feed_forward = FusedFeedForward(block.feed_forward, scale=scales[1], dtype=dtype)

    def forward(
        self, x_BTD: Tensor, *, mask: Mask, rope: RopeTable | None, cache: LayerCache | None
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        y = self._enter(x_BTD, self.norm1)
        y = self.attention(y, mask=mask, rope=rope, cache=cache)
        x_BTD = x_BTD + self._behind(y, self.norm1, self.norm1_behind)
        x_BTD = self._leave(x_BTD, self.norm1)
        y = self.feed_forward(self._enter(x_BTD, self.norm2))
        x_BTD = x_BTD + self._behind(y, self.norm2, self.norm2_behind)
        return self._leave(x_BTD, self.norm2)


class FusedTransformer(Transformer):
    """A stack of fused blocks; it takes what a `Transformer` takes in eval mode."""

    def __init__(self, transformer: Transformer, *, dtype: torch.dtype | None, keep: bool) -> None:
        nn.Module.__init__(self)
        self.config = transformer.config
        self._cache_dtype = dtype
        self.blocks = nn.ModuleDict()
        for name in list(transformer.blocks):
            block = transformer.blocks[name] if keep else transformer.blocks.pop(name)
            assert isinstance(block, TransformerBlock)
            self.blocks[name] = FusedBlock(block, dtype=dtype)

    def build_caches(self, batch_size: int, max_length: int) -> list[KVCache]:
        """As a `Transformer`'s, in the products' dtype."""
        dtype = self._cache_dtype or next(self.parameters()).dtype
        return self._caches(batch_size, max_length, dtype)

    @torch.no_grad()
    def forward(
        self,
        x_BTD: Tensor,
        *,
        mask: Mask,
        local_mask: Mask | None = None,
        rope: RopeTable | None = None,
        local_rope: RopeTable | None = None,
        keep_BL2: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
        context_BSD: Tensor | None = None,
        context_mask: Mask | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D] through the blocks held here.

        Raises:
            ValueError: stochastic depth or a context is given, which only training has.
        """
        if keep_BL2 is not None or context_BSD is not None or context_mask is not None:
            raise ValueError("fused blocks take neither keep_BL2 nor a context: they only infer")
        for name, block in self.blocks.items():
            layer = int(name)
            local = self.config.is_local(layer)
            x_BTD = block(
                x_BTD,
                mask=local_mask if local and local_mask is not None else mask,
                rope=local_rope if local and local_rope is not None else rope,
                cache=None if caches is None else caches[layer],
            )
        return x_BTD


def can_fuse(module: nn.Module) -> bool:
    """Whether a module is what it was built as: no sharded weight, no adapter's layer whose term
    is not merged, nothing around a forward, no block of another kind or with cross-attention."""
    for part in module.modules():
        plain = type(part) is nn.Linear or getattr(part, "is_merged", False)
        if isinstance(part, nn.Linear) and not plain:
            return False
        is_block = isinstance(part, TransformerBlock)
        if is_block and (type(part) is not TransformerBlock or part.cross_attention is not None):
            return False
        if layers_around(part) or part._forward_hooks or part._forward_pre_hooks:
            return False
    kinds = (nn.Parameter, Tensor)
    return all(type(weight) in kinds for weight in module.parameters())


@torch.no_grad()
def fuse(
    transformer: Transformer, *, dtype: torch.dtype | None = None, keep: bool = True
) -> Transformer:
    """A stack that computes the same faster, without gradients.

    Args:
        transformer: with whole weights, see `can_fuse`.
        dtype: of the products; sums over branches stay in the tokens' dtype. None: the weights'.
        keep: whether the given one stays; if not, it loses its blocks one by one.

    Raises:
        ValueError: it cannot be fused.
    """
    if isinstance(transformer, FusedTransformer):
        return transformer
    if not can_fuse(transformer):
        raise ValueError("a stack with sharded, wrapped or adapted layers cannot be fused")
    return FusedTransformer(transformer, dtype=dtype, keep=keep)


def _joined(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights [out, in] and biases [out] one after another."""
    weights = [linear.weight.detach() for linear in linears]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    if all(linear.bias is None for linear in linears):
        return weight, None
    biases = [
        weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        for linear in linears
    ]
    return weight, torch.cat(biases)


def _can_pack(weight: Tensor) -> bool:
    """Whether oneDNN takes the weight in a layout of its own."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype not in _PACKED or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    supported = _PACKED[weight.dtype]
    return not supported or bool(getattr(torch.ops.mkldnn, supported)())
