"""A tensor-parallel rank's share of a stage without any rank: narrower weights, and collectives
that have shapes only. parallel/tensor.py is the real thing; its plan says what is cut.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.nn import functional as F

from mmtrain.models import Decoder
from mmtrain.nn import Mask, Transformer, TransformerConfig
from mmtrain.nn.seams import Forward, wrap_forward
from mmtrain.parallel.tensor import SharedHeads, block_plan, pad_mask, pad_rope
from mmtrain.parallel.vocabulary import has_vocabulary

_GROUP = "nobody"
"""Fake tensors go through a collective's shapes, which ask for no group."""
_Move = Callable[[Tensor], Tensor]


def cut_shape(
    path: str, leaf: str, shape: tuple[int, ...], config: TransformerConfig, tp: int
) -> tuple[int, ...]:
    """The shape that a tensor-parallel rank holds of a parameter.

    Args:
        path: of its module within a block.
        leaf: its name there.
        shape: whole.
        config: of the blocks.
        tp: ranks.
    """
    style = block_plan(config, tp=tp, sequence=True).get(path)
    if isinstance(style, ColwiseParallel) and leaf != "lora_a":
        return (shape[0] // tp, *shape[1:])
    if isinstance(style, RowwiseParallel) and leaf in ("weight", "lora_a"):
        return (shape[0], shape[1] // tp)
    return shape


def take_share(stage: nn.Module, tp: int, *, sequence: bool) -> None:
    """Leave a stage of fake tensors the share of a tensor-parallel rank, in place."""
    for module in list(stage.modules()):
        if isinstance(module, Transformer):
            for block in module.blocks.values():
                _cut_block(block, module.config, tp, sequence=sequence)
            if sequence:
                wrap_forward(module, "ranks", partial(_over_tokens, tp=tp))
        elif has_vocabulary(module):
            _cut_vocabulary(module, tp)


def _cut_block(block: nn.Module, config: TransformerConfig, tp: int, *, sequence: bool) -> None:
    for path, style in block_plan(config, tp=tp, sequence=sequence).items():
        part = dict(block.named_modules()).get(path)
        if part is None:
            continue
        for leaf, weight in list(part.named_parameters(recurse=False)):
            shape = cut_shape(path, leaf, tuple(weight.shape), config, tp)
            if isinstance(style, SharedHeads):
                # The rows of one head take part; the rest lies there.
                shape = (style.head_dim, *shape[1:])
            cut = nn.Parameter(weight.new_empty(shape), requires_grad=weight.requires_grad)
            setattr(part, leaf, cut)
        if path in ("attention", "cross_attention", "feed_forward"):
            wrap_forward(part, "ranks", partial(_between_ranks, tp=tp, sequence=sequence))


def _between_ranks(forward: Forward, *, tp: int, sequence: bool) -> Forward:
    """All tokens in, a sum over the ranks out: of a share of the tokens, or of all."""
    gather, scatter = partial(_gather, tp=tp), partial(_scatter, tp=tp)
    enter, leave, back = (gather, scatter, gather) if sequence else (_same, _sum, _same)

    def run(x_BTD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x_BTD = _Exchange.apply(x_BTD, enter, leave)
        return _Exchange.apply(forward(x_BTD, *args, **kwargs), leave, back)

    return run


def _over_tokens(forward: Forward, *, tp: int) -> Forward:
    """A stack of blocks whose residual stream holds a share of the tokens, see SequenceSharded."""
    gather, share = partial(_gather, tp=tp), partial(_share, tp=tp)

    def run(
        x_BTD: Tensor,
        *,
        mask: Mask,
        local_mask: Mask | None = None,
        rope: Any = None,
        local_rope: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        num_tokens = x_BTD.size(1)
        padding = -num_tokens % tp
        if padding:
            x_BTD = F.pad(x_BTD, (0, 0, 0, padding))
            mask = pad_mask(mask, num_tokens, padding, x_BTD.device)
            local_mask = local_mask and pad_mask(local_mask, num_tokens, padding, x_BTD.device)
            rope, local_rope = pad_rope(rope, padding), pad_rope(local_rope, padding)
        x_BTD = _Exchange.apply(x_BTD, share, gather)
        told = {"local_mask": local_mask, "rope": rope, "local_rope": local_rope}
        x_BTD = forward(x_BTD, mask=mask, **told, **kwargs)
        return _Exchange.apply(x_BTD, gather, share)[:, :num_tokens].contiguous()

    return run


def _cut_vocabulary(decoder: Decoder, tp: int) -> None:
    tables: list[nn.Module] = []
    if decoder.embed is not None:
        tables.append(decoder.embed.token)
        wrap_forward(decoder.embed.token, "ranks", _over_entries)
    if decoder.head is not None:
        for logits in (decoder.head.projection, decoder.head.tied):
            if logits is not None:
                wrap_forward(logits, "ranks", _sum_gradient)
        if decoder.head.projection is not None:
            tables.append(decoder.head.projection)
    for module in tables:
        weight: Any = module.weight
        rows = -(-weight.size(0) // tp)
        cut = nn.Parameter(weight.new_empty(rows, weight.size(1)), weight.requires_grad)
        module.weight = cut


def _over_entries(look_up: Forward) -> Forward:
    """Ids of other ranks' entries give zeros, and the ranks' vectors are summed."""
    return lambda tokens_BT: _Exchange.apply(
        torch.where(tokens_BT[..., None] >= 0, look_up(tokens_BT), 0), _sum, _same
    )


def _sum_gradient(multiply: Forward) -> Forward:
    """Each rank's logits give a part of their features' gradient."""
    return lambda x_BTD, *weight: multiply(_Exchange.apply(x_BTD, _same, _sum), *weight)


def _same(x: Tensor) -> Tensor:
    return x.view_as(x)


def _share(x_BTD: Tensor, tp: int) -> Tensor:
    return x_BTD.chunk(tp, dim=1)[0].clone()


def _gather(x_BTD: Tensor, tp: int) -> Tensor:
    whole = torch.ops._c10d_functional.all_gather_into_tensor(x_BTD.contiguous(), tp, _GROUP)
    return torch.cat(whole.chunk(tp), dim=1)


def _scatter(x_BTD: Tensor, tp: int) -> Tensor:
    x = torch.cat(x_BTD.chunk(tp, dim=1))
    return torch.ops._c10d_functional.reduce_scatter_tensor(x, "sum", tp, _GROUP)


def _sum(x_BTD: Tensor) -> Tensor:
    return torch.ops._c10d_functional.all_reduce(x_BTD.contiguous(), "sum", _GROUP)


class _Exchange(torch.autograd.Function):
    """What ranks exchange forward, and what they do for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: _Move, back: _Move) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(gradients[0]), None, None
