"""One block of a transformer: attention and feed-forward on residual branches."""

import torch
from torch import Tensor, nn

from mmtrain.nn.attention import Attention
from mmtrain.nn.config import NormOrder, TransformerConfig
from mmtrain.nn.feed_forward import FeedForward
from mmtrain.nn.kv_cache import LayerCache
from mmtrain.nn.masks import Mask
from mmtrain.nn.rope import RopeTable


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


class BlockNorms(nn.Module):
    """Where the norms of a branch stand, by `norm_order`."""

    norm_order: NormOrder

    def _enter(self, x_BTD: Tensor, norm: nn.Module) -> Tensor:
        """What a branch reads of the stream."""
        return norm(x_BTD) if self.norm_order in ("pre", "sandwich") else x_BTD

    def _behind(self, y_BTD: Tensor, norm: nn.Module, behind: nn.Module | None) -> Tensor:
        """What a branch adds to it."""
        if self.norm_order == "branch":
            return norm(y_BTD)
        return y_BTD if behind is None else behind(y_BTD)

    def _leave(self, x_BTD: Tensor, norm: nn.Module) -> Tensor:
        """The stream after a branch."""
        return norm(x_BTD) if self.norm_order == "post" else x_BTD


class TransformerBlock(BlockNorms):
    """Attention, optional cross-attention and feed-forward, each on a residual branch."""

    norm1_behind: nn.Module | None
    attention: Attention
    scale1: LayerScale | None
    norm_cross: nn.Module | None
    norm_cross_behind: nn.Module | None
    cross_attention: Attention | None
    scale_cross: LayerScale | None
    norm2_behind: nn.Module | None
    feed_forward: FeedForward
    scale2: LayerScale | None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_order = config.norm_order
        self.norm1, self.norm1_behind = _norms(config)
        self.attention = _attention(config, context_dim=None)
        self.scale1 = _layer_scale(config)
        crosses = config.context_dim is not None
        self.norm_cross, self.norm_cross_behind = _norms(config) if crosses else (None, None)
        self.cross_attention = (
            _attention(config, context_dim=config.context_dim) if crosses else None
        )
        self.scale_cross = _layer_scale(config) if crosses else None
        self.norm2, self.norm2_behind = _norms(config)
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
        cache: LayerCache | None = None,
        context_BSD: Tensor | None = None,
        context_mask: Mask | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]. `keep_B2` scales the two branches of each sample."""
        keep1, keep2 = (None, None) if keep_B2 is None else keep_B2.to(x_BTD.dtype).unbind(1)

        y = self.attention(self._enter(x_BTD, self.norm1), mask=mask, rope=rope, cache=cache)
        y = self._behind(y, self.norm1, self.norm1_behind)
        x_BTD = self._leave(_add(x_BTD, y, self.scale1, keep1), self.norm1)

        if self.cross_attention is not None and self.norm_cross is not None:
            assert context_BSD is not None, "a block with cross-attention needs a context"
            y = self._enter(x_BTD, self.norm_cross)
            y = self.cross_attention(y, context_BSD, mask=context_mask or Mask())
            y = self._behind(y, self.norm_cross, self.norm_cross_behind)
            x_BTD = self._leave(_add(x_BTD, y, self.scale_cross, None), self.norm_cross)

        y = self.feed_forward(self._enter(x_BTD, self.norm2))
        y = self._behind(y, self.norm2, self.norm2_behind)
        return self._leave(_add(x_BTD, y, self.scale2, keep2), self.norm2)


def _norms(config: TransformerConfig) -> tuple[nn.Module, nn.Module | None]:
    """The norm of a branch, and a second one behind it."""
    behind = config.build_norm(config.dim) if config.norm_order == "sandwich" else None
    return config.build_norm(config.dim), behind


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
    whole = config.qk_norm_over == "heads"
    q_norm, k_norm = (
        config.build_norm(config.head_size * (heads if whole else 1), kind=config.qk_norm)
        if config.qk_norm
        else None
        for heads in (config.num_heads, config.kv_heads)
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
        norm_over_heads=whole,
        scale=config.attention_scale,
        cap=config.attention_cap,
    )
