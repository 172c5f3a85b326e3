"""The transformer that every tower is made of."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmtrain.nn.block import TransformerBlock
from mmtrain.nn.config import TransformerConfig
from mmtrain.nn.kv_cache import KVCache, LayerCache
from mmtrain.nn.masks import Mask, MaskKind, build_mask
from mmtrain.nn.rope import RopeTable


class Transformer(nn.Module):
    """A stack of blocks. Embeddings and the final norm belong to the tower around it.

    Blocks are keyed by their number in the whole stack, so that a pipeline stage, which holds a
    slice, keeps the parameters' names.
    """

    tensor_plan: ClassVar[str] = "blocks"

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
        kind: MaskKind | None = None,
        key_length_B: Tensor | None = None,
        real_BS: Tensor | None = None,
        prefix_length_B: Tensor | None = None,
        segment_BT: Tensor | None = None,
        num_cached: int = 0,
    ) -> Mask:
        """A mask of `kind`, or of the configured one; the rest as in masks.build_mask."""
        return build_mask(
            kind or self.config.mask,
            num_tokens,
            device=device,
            key_length_B=key_length_B,
            real_BS=real_BS,
            prefix_length_B=prefix_length_B,
            segment_BT=segment_BT,
            num_cached=num_cached,
        )

    def build_caches(self, batch_size: int, max_length: int) -> list[KVCache]:
        """Empty caches, one per layer of the whole stack, in the weights' dtype and place."""
        return self._caches(batch_size, max_length, next(self.parameters()).dtype)

    def _caches(self, batch_size: int, max_length: int, dtype: torch.dtype) -> list[KVCache]:
        return [
            KVCache(
                batch_size=batch_size,
                max_length=max_length,
                num_kv_heads=self.config.kv_heads,
                head_dim=self.config.head_size,
                dtype=dtype,
                device=next(self.parameters()).device,
            )
            for _ in range(self.config.num_layers)
        ]

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

        Args:
            x_BTD: tokens.
            mask: from build_mask.
            local_mask: of the local layers. None: the same.
            rope: tables of these tokens.
            local_rope: of the local layers. None: the same.
            keep_BL2: factors of stochastic depth from depth_keep, over the whole stack's layers.
            caches: one per layer of the whole stack.
            context_BSD: what cross-attention looks at.
            context_mask: over that context.
        """
        if rope is not None:  # once, not in every block
            dtype = _product_dtype(x_BTD)
            rope = rope[0].to(dtype), rope[1].to(dtype)
            local_rope = local_rope and (local_rope[0].to(dtype), local_rope[1].to(dtype))
        for name, block in self.blocks.items():
            layer = int(name)
            local = self.config.is_local(layer)
            x_BTD = block(
                x_BTD,
                mask=local_mask if local and local_mask is not None else mask,
                rope=local_rope if local and local_rope is not None else rope,
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


def _product_dtype(x: Tensor) -> torch.dtype:
    """What linear layers make of it."""
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else x.dtype


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
