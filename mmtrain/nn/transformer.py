"""The transformer that every tower is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmtrain.nn.attention import (
    Attention,
    Mask,
    block_allowed,
    causal_allowed,
    key_length_allowed,
    prefix_allowed,
)
from mmtrain.nn.feed_forward import GATED, Activation, FeedForward
from mmtrain.nn.kv_cache import KVCache
from mmtrain.nn.norm import NormKind, build_norm
from mmtrain.nn.rope import RopeTable

MaskKind = Literal["full", "causal", "prefix", "block"]
InitScheme = Literal["torch", "scaled"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a stack of blocks; it spans CLIP, SigLIP, timm's ViT, GPT-1/2, Llama and Gemma."""

    dim: int
    """Width of the residual stream."""
    num_layers: int
    """Blocks."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int | None = None
    """Key and value heads; must divide num_heads. None: num_heads (MHA); 1 is MQA."""
    head_dim: int | None = None
    """Features per head. None: dim / num_heads."""
    ff_dim: int | None = None
    """Width of the feed-forward. None: 4 * dim, or 8/3 * dim rounded up to 8 where gated."""
    activation: Activation = "gelu"
    """gelu, gelu_tanh, quick_gelu, relu; gated: swiglu, geglu, geglu_tanh."""
    norm: NormKind = "layer"
    """layer, rms, partial_rms (statistic over a share of the features), gemma_rms (1 + weight)."""
    norm_eps: float = 1e-5
    """Added under the root of every norm."""
    norm_fraction: float = 0.0625
    """Share of the features that partial_rms measures."""
    norm_bias: bool = True
    """Whether layer norms have a bias; the other kinds never do."""
    norm_order: Literal["pre", "post"] = "pre"
    """pre: x + f(norm(x)); post: norm(x + f(x)), as GPT-1."""
    qkv_bias: bool = True
    """Biases on the query, key and value projections."""
    out_bias: bool = True
    """Bias on attention's output projection."""
    ff_bias: bool = True
    """Biases in the feed-forward."""
    qk_norm: NormKind | None = None
    """Norm of queries and keys per head, its eps, fraction and bias as above (arXiv:2302.05442).
    None: off."""
    layer_scale: float | None = None
    """Initial value of the learned scale on each branch (arXiv:2103.17239, Eq. 4). None: off."""
    stochastic_depth: float = 0.0
    """Chance to drop the last block's attention, and its feed-forward, of a sample; it grows
    linearly with depth (arXiv:1603.09382)."""
    mask: MaskKind = "full"
    """full, causal, prefix (bidirectional prefix) or block (shared context, separate questions)."""
    context_dim: int | None = None
    """Width of what cross-attention in every block looks at. None: no cross-attention."""
    init: InitScheme = "torch"
    """Table of initial weights, see Transformer.init_weights."""

    def __post_init__(self) -> None:
        for name in ("dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ff_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} must divide dim = {self.dim}, or set head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads = {self.kv_heads} must divide num_heads = {self.num_heads}"
            )
        if not 0 < self.norm_fraction <= 1:
            raise ValueError(f"norm_fraction = {self.norm_fraction} must lie in (0, 1]")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth = {self.stochastic_depth} must lie in [0, 1)")

    @property
    def kv_heads(self) -> int:
        """Key and value heads, resolved."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Features per head, resolved."""
        return self.dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward, resolved."""
        if self.ff_dim is not None:
            return self.ff_dim
        return -(-self.dim // 3) * 8 if self.activation in GATED else 4 * self.dim

    def build_norm(self, dim: int, *, kind: NormKind | None = None) -> nn.Module:
        """A norm over `dim` features: of `kind`, or the configured one; the rest as configured."""
        return build_norm(
            kind or self.norm,
            dim,
            eps=self.norm_eps,
            fraction=self.norm_fraction,
            bias=self.norm_bias,
        )


class LayerScale(nn.Module):
    """x * scale, one learned factor per feature."""

    def __init__(self, dim: int, *, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.scale = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return x_BTD * self.scale

    def reset_parameters(self) -> None:
        """The configured initial value."""
        nn.init.constant_(self.scale, self.initial)


class TransformerBlock(nn.Module):
    """Attention, optional cross-attention and feed-forward, each on a residual branch."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_order == "pre"
        self.norm1 = config.build_norm(config.dim)
        self.attention = _attention(config, context_dim=None)
        self.scale1 = _layer_scale(config)
        crosses = config.context_dim is not None
        self.norm_cross = config.build_norm(config.dim) if crosses else None
        self.cross_attention = (
            _attention(config, context_dim=config.context_dim) if crosses else None
        )
        self.scale_cross = _layer_scale(config) if crosses else None
        self.norm2 = config.build_norm(config.dim)
        self.feed_forward = FeedForward(
            config.dim, config.hidden_dim, activation=config.activation, bias=config.ff_bias
        )
        self.scale2 = _layer_scale(config)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        mask: Mask,
        rope: RopeTable | None = None,
        keep_B2: Tensor | None = None,
        cache: KVCache | None = None,
        context_BSD: Tensor | None = None,
        context_mask: Mask | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]. `keep_B2` scales the two branches of each sample."""
        keep1, keep2 = (None, None) if keep_B2 is None else keep_B2.to(x_BTD.dtype).unbind(1)

        y = self.norm1(x_BTD) if self.pre_norm else x_BTD
        y = self.attention(y, mask=mask, rope=rope, cache=cache)
        x_BTD = _add(x_BTD, y, self.scale1, keep1)
        x_BTD = x_BTD if self.pre_norm else self.norm1(x_BTD)

        if self.cross_attention is not None and self.norm_cross is not None:
            assert context_BSD is not None, "a block with cross-attention needs a context"
            y = self.norm_cross(x_BTD) if self.pre_norm else x_BTD
            y = self.cross_attention(y, context_BSD, mask=context_mask or Mask())
            x_BTD = _add(x_BTD, y, self.scale_cross, None)
            x_BTD = x_BTD if self.pre_norm else self.norm_cross(x_BTD)

        y = self.norm2(x_BTD) if self.pre_norm else x_BTD
        y = self.feed_forward(y)
        x_BTD = _add(x_BTD, y, self.scale2, keep2)
        return x_BTD if self.pre_norm else self.norm2(x_BTD)


class Transformer(nn.Module):
    """A stack of blocks. Embeddings and the final norm belong to the tower around it.

    Blocks are keyed by their number in the whole stack, so that a pipeline stage, which holds a
    slice, keeps the parameters' names.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleDict(
            {str(layer): TransformerBlock(config) for layer in range(config.num_layers)}
        )

    def build_mask(
        self,
        num_tokens: int,
        *,
        device: torch.device,
        key_length_B: Tensor | None = None,
        prefix_length_B: Tensor | None = None,
        segment_BT: Tensor | None = None,
        num_cached: int = 0,
    ) -> Mask:
        """The mask of the configured kind, as a flag where a flag serves.

        Args:
            num_tokens: queries of this call.
            device: where the mask is needed.
            key_length_B: keys of each row, cached ones too and at least 1; later ones are padding
                that nobody sees.
            prefix_length_B: length of the bidirectional prefix (kind `prefix`).
            segment_BT: segment ids (kind `block`) of all keys, see block_allowed.
            num_cached: tokens already in the KV cache; the queries are the last of all keys.

        Raises:
            ValueError: the kind needs an argument that is missing or of another length.
        """
        kind, num_keys, allowed = self.config.mask, num_cached + num_tokens, None
        # The newest token sees all the others: no mask at all.
        causal = kind == "causal" and num_keys > 1 and not (num_cached and num_tokens == 1)
        if causal and (num_cached or key_length_B is not None):
            allowed = causal_allowed(num_tokens, num_keys, device=device)
        elif kind == "prefix":
            if prefix_length_B is None:
                raise ValueError('mask = "prefix" needs prefix_length_B')
            allowed = prefix_allowed(prefix_length_B, num_keys)[:, num_cached:]
        elif kind == "block":
            if segment_BT is None or segment_BT.size(1) != num_keys:
                raise ValueError(f'mask = "block" needs segment_BT of all {num_keys} keys')
            allowed = block_allowed(segment_BT)[:, num_cached:]
        if key_length_B is not None:
            inside = key_length_allowed(key_length_B, num_keys)
            allowed = inside if allowed is None else allowed & inside
        return Mask(causal=causal and allowed is None, allowed=allowed)

    def build_caches(self, batch_size: int, max_length: int) -> list[KVCache]:
        """Empty caches, one per layer of the whole stack, in the weights' dtype and place."""
        weight = next(self.parameters())
        return [
            KVCache(
                batch_size=batch_size,
                max_length=max_length,
                num_kv_heads=self.config.kv_heads,
                head_dim=self.config.head_size,
                dtype=weight.dtype,
                device=weight.device,
            )
            for _ in range(self.config.num_layers)
        ]

    def forward(
        self,
        x_BTD: Tensor,
        *,
        mask: Mask,
        rope: RopeTable | None = None,
        keep_BL2: Tensor | None = None,
        caches: Sequence[KVCache] | None = None,
        context_BSD: Tensor | None = None,
        context_mask: Mask | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D] through the blocks held here.

        Args:
            x_BTD: tokens.
            mask: from build_mask.
            rope: tables of these tokens.
            keep_BL2: factors of stochastic depth from depth_keep, over the whole stack's layers.
            caches: one per layer of the whole stack.
            context_BSD: what cross-attention looks at.
            context_mask: over that context.
        """
        for name, block in self.blocks.items():
            layer = int(name)
            x_BTD = block(
                x_BTD,
                mask=mask,
                rope=rope,
                keep_B2=None if keep_BL2 is None else keep_BL2[:, layer],
                cache=None if caches is None else caches[layer],
                context_BSD=context_BSD,
                context_mask=context_mask,
            )
        return x_BTD

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights by the configured table (w = dim, L = num_layers).

        | weight            | torch (open_clip's vision tower) | scaled (CLIP's text tower)  |
        |-------------------|----------------------------------|-----------------------------|
        | attention q, k, v | U(+-sqrt(6 / 4w)), as if fused   | N(w^-.5)                    |
        | attention o       | U(+-fan_in^-.5)                  | N(w^-.5 (2L)^-.5)           |
        | up, gate          | U(+-fan_in^-.5)                  | N((2w)^-.5)                 |
        | down              | U(+-fan_in^-.5)                  | N(w^-.5 (2L)^-.5)           |
        | attention biases  | 0                                | 0                           |
        | feed-forward bias | U(+-fan_in^-.5)                  | U(+-fan_in^-.5)             |
        | norms             | identity                         | identity                    |
        """
        for block in self.blocks.values():
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    self._init_linear(name, module, generator)
                elif name and hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # pyright: ignore[reportCallIssue]

    def _init_linear(self, name: str, linear: nn.Linear, generator: torch.Generator) -> None:
        """One linear layer of a block, by the last part of its name."""
        width, kind = self.config.dim, name.rpartition(".")[2]
        bound = linear.in_features**-0.5
        output_std = width**-0.5 * (2 * self.config.num_layers) ** -0.5
        std = {"o": output_std, "down": output_std, "up": (2 * width) ** -0.5}
        std |= {"gate": std["up"], "q": width**-0.5, "k": width**-0.5, "v": width**-0.5}
        if self.config.init == "scaled":
            linear.weight.normal_(0.0, std[kind], generator=generator)
        else:
            edge = (6 / (4 * width)) ** 0.5 if kind in ("q", "k", "v") else bound
            linear.weight.uniform_(-edge, edge, generator=generator)
        if linear.bias is not None:
            edge = 0.0 if kind in ("q", "k", "v", "o") else bound
            linear.bias.uniform_(-edge, edge, generator=generator)


def depth_keep(uniform_BL2: Tensor, *, rate: float) -> Tensor:
    """Factors of stochastic depth: 0 for a dropped branch, 1 / (1 - rate_l) for a kept one.

    Args:
        uniform_BL2: draws in [0, 1), one per sample, layer and branch.
        rate: chance of the last layer; layer l of L has rate * l / (L - 1).
    """
    num_layers = uniform_BL2.size(1)
    layer_L1 = torch.arange(num_layers, device=uniform_BL2.device)[:, None]
    rate_L1 = rate * layer_L1 / max(num_layers - 1, 1)
    return ((uniform_BL2 >= rate_L1) / (1 - rate_L1)).float()


def _add(x_BTD: Tensor, y_BTD: Tensor, scale: nn.Module | None, keep_B: Tensor | None) -> Tensor:
    """The residual sum with the branch's learned and random factors."""
    if scale is not None:
        y_BTD = scale(y_BTD)
    if keep_B is not None:
        y_BTD = y_BTD * keep_B[:, None, None]
    return x_BTD + y_BTD


def _layer_scale(config: TransformerConfig) -> LayerScale | None:
    if config.layer_scale is None:
        return None
    return LayerScale(config.dim, initial=config.layer_scale)


def _attention(config: TransformerConfig, *, context_dim: int | None) -> Attention:
    q_norm, k_norm = (
        config.build_norm(config.head_size, kind=config.qk_norm) if config.qk_norm else None
        for _ in range(2)
    )
    return Attention(
        config.dim,
        num_heads=config.num_heads,
        num_kv_heads=config.kv_heads,
        head_dim=config.head_size,
        context_dim=context_dim,
        qkv_bias=config.qkv_bias,
        out_bias=config.out_bias,
        q_norm=q_norm,
        k_norm=k_norm,
    )
