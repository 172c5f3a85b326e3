"""Pairwise sigmoid loss (SigLIP), exact, in memory O(B * E)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from mmtrain.losses._arguments import as_scalar
from mmtrain.losses._blocks import Pairing, Positives, pair
from mmtrain.losses._gradients import FinishedInForward
from mmtrain.losses._sigmoid_sums import SigmoidSums


def siglip_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    *,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    group: ProcessGroup | None = None,
    labels_B: Tensor | None = None,
    positives: Positives = "attract",
    valid_B: Tensor | None = None,
    equal_rows: bool = False,
    sum_loss: bool = True,
    row_loss_B: Tensor | None = None,
) -> Tensor:
    """Sum of the pairwise sigmoid losses over the global batch, divided by its size.

        loss = -1/B * sum_ij logsigmoid(z_ij * (scale * <image_i, text_j> + bias))

    with z = +1 where image and text match and -1 elsewhere. A pair's gradient needs no other pair,
    so when gradients are wanted one pass over the blocks yields the loss and all of them: three
    products per block, memory O(B * E). Zhai et al. 2023, arXiv:2303.15343, Alg. 1.

    Args:
        image_BE, text_BE: features of this rank's pairs; usually unit-norm, which is not required.
        logit_scale: the multiplier of the cosines, not its logarithm; one number.
        logit_bias: added to every logit; one number.
        group: ranks that share the global batch. The returned loss is the *global mean on every
            rank*; gradients (features, scale and bias) are scaled so that their **mean** over the
            group is the gradient of that loss, which is what DDP and FSDP average.
        labels_B: int64; rows of equal label, on any rank, match each other; -1 matches nothing.
        positives: what equal labels do. "attract": z = +1 for all of them. "ignore": only the own
            text is a positive; the other matching pairs count nowhere.
        valid_B: bool; false rows are padding: in no pair and not in B. Without any true row the
            loss is 0.
        equal_rows: the ranks are known to hold equally many rows and the same arguments: they do
            not ask each other, which would cost a collective.
        sum_loss: False: what is returned is this rank's share of the loss, for a caller that adds
            up the ranks' together with something else. The gradients are the same.
        row_loss_B: is filled with each row's part, whose mean over the real rows is the loss: what
            its image loses beside all texts; 0 on padding.

    Returns:
        The loss, 0-dim, fp32, or fp64 for fp64 features. It can be differentiated once.

    Raises:
        ValueError: shapes or dtypes do not fit, or the ranks hold unequal numbers of rows.
    """
    features = {"image_BE": image_BE, "text_BE": text_BE}
    pairing, (text_AE,) = pair(
        features,
        group=group,
        labels_B=labels_B,
        positives=positives,
        valid_B=valid_B,
        equal_rows=equal_rows,
    )
    # The texts that are computed with are the gathered ones; padding among them has no gradient.
    image_BE, text_BE = pairing.real(image_BE), text_BE.to(pairing.dtype)
    scale = as_scalar(logit_scale, name="logit_scale", like=image_BE)
    bias = as_scalar(logit_bias, name="logit_bias", like=image_BE)
    parts = _Parts(
        text_AE=text_AE,
        pairing=pairing,
        differentiable=torch.is_grad_enabled(),
        sums=sum_loss,
        told_B=row_loss_B,
    )
    return _SiglipLoss.apply(image_BE, text_BE, scale, bias, parts)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What no gradient is wanted of."""

    text_AE: Tensor
    pairing: Pairing
    differentiable: bool
    sums: bool
    told_B: Tensor | None


class _SiglipLoss(FinishedInForward):
    """The streamed loss."""

    @staticmethod
    def forward(
        ctx: Any,
        image_BE: Tensor,
        text_BE: Tensor,
        scale: Tensor,
        bias: Tensor,
        parts: _Parts,
    ) -> Tensor:
        need_image, need_text, need_scale, need_bias = (
            parts.differentiable and need for need in ctx.needs_input_grad[:4]
        )
        sums = SigmoidSums(
            parts.text_AE,
            scale=scale,
            bias=bias,
            pairing=parts.pairing,
            need_text=need_text,
            need_scale=need_scale,
            need_bias=need_bias,
        )
        image_grad_BE = sums.add(
            image_BE, pairing=parts.pairing, need_image=need_image, told_X=parts.told_B
        )
        loss, text_grad_BE, scale_grad, bias_grad = sums.finish(sum_loss=parts.sums)
        ctx.save_for_backward(image_grad_BE, text_grad_BE, scale_grad, bias_grad)
        return loss
