"""What a vision tower looks at, whatever the text: its attention through all its layers."""

from typing import Any

import torch
from torch import Tensor

from mmtrain.eval.look.attention_shares import attention_shares, softmax_shares
from mmtrain.models import Clip
from mmtrain.nn.attention import Attention
from mmtrain.nn.masks import Mask
from mmtrain.nn.pooling import AttentionPool


@torch.no_grad()
def attention_rollout(model: Clip, images_BCHW: Tensor) -> Tensor:
    """The share of each patch in what the tower pools: fp32 [B, rows, columns].

    Abnar and Zuidema 2020, arXiv:2005.00928, Sec. 3: the mean over the heads, half of it and half
    of the identity for the residual branch, multiplied from the first layer to the last. Read off
    at the class token, over the mean of the patches, or as attention pooling weighs them. The maps
    sum to 1 less what stays with the class token and the registers.

    Args:
        model: in eval mode.
        images_BCHW: uint8; height and width are multiples of the patch size.
    """
    vision, size = model.vision, model.vision.config.patch_size
    assert vision.head is not None, "a slice of the tower pools nothing"
    grid = images_BCHW.size(-2) // size, images_BCHW.size(-1) // size
    steps: list[Tensor] = []
    pooled: list[Tensor] = []

    def see_layer(layer: Attention, inputs: tuple[Tensor], told: dict[str, Any]) -> None:
        steps.append(attention_shares(layer, *inputs, mask=told["mask"], rope=told["rope"]))

    def see_pool(pool: AttentionPool, inputs: tuple[Tensor]) -> None:
        pooled.append(_pool_shares(pool, *inputs))

    layers = [module for module in vision.transformer.modules() if isinstance(module, Attention)]
    hooks = [layer.register_forward_pre_hook(see_layer, with_kwargs=True) for layer in layers]
    if vision.head.pool is not None:
        hooks.append(vision.head.pool.register_forward_pre_hook(see_pool))
    try:
        vision(images_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    rollout_BTT = torch.eye(steps[0].size(-1), device=images_BCHW.device)
    for share_BTT in steps:
        rollout_BTT = (share_BTT @ rollout_BTT + rollout_BTT) / 2
    first = vision.config.num_prefix
    if vision.config.pool == "first":
        row_BT = rollout_BTT[:, 0]
    elif pooled:
        row_BT = (pooled[0][:, None] @ rollout_BTT[:, first:])[:, 0]
    else:
        row_BT = rollout_BTT[:, first:].mean(1)
    return row_BT[:, first:].unflatten(1, grid)


def _pool_shares(pool: AttentionPool, x_BTD: Tensor) -> Tensor:
    """How attention pooling weighs the tokens that it reads: fp32 [B, T]."""
    query_B1D = pool.query.expand(x_BTD.size(0), 1, -1)
    q_B1NH = pool.q(query_B1D).unflatten(-1, (-1, pool.head_dim))
    k_BTNH = pool.k(x_BTD).unflatten(-1, (-1, pool.head_dim))
    return softmax_shares(q_B1NH, k_BTNH, Mask()).mean(1)[:, 0]
