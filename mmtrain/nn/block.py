"""One block of a transformer: attention and feed-forward on residual branches."""

import torch
from torch import Tensor, nn

from mmtrain.nn.attention import Attention
from mmtrain.nn.config import TransformerConfig
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
        cache: LayerCache | None = None,
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
