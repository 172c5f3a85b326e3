"""Pairwise sigmoid loss (SigLIP), exact, in memory O(B * E)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from mmtrain.collectives import gather_rows, scatter_row_sums, sum_
from mmtrain.losses._blocks import Block, Pairing, Positives, as_scalar, prepare, product


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

    Returns:
        The loss, 0-dim, fp32, or fp64 for fp64 features. It can be differentiated once.

    Raises:
        ValueError: shapes or dtypes do not fit, or the ranks hold unequal numbers of rows.
    """
    image_BE, text_BE, pairing = prepare(
        image_BE, text_BE, group=group, labels_B=labels_B, positives=positives, valid_B=valid_B
    )
    scale = as_scalar(logit_scale, name="logit_scale", like=image_BE)
    bias = as_scalar(logit_bias, name="logit_bias", like=image_BE)
    return _SiglipLoss.apply(image_BE, text_BE, scale, bias, pairing, torch.is_grad_enabled())


class _SiglipLoss(torch.autograd.Function):
    """The streamed loss. Forward leaves finished gradients, backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        image_BE: Tensor,
        text_BE: Tensor,
        scale: Tensor,
        bias: Tensor,
        pairing: Pairing,
        differentiable: bool,
    ) -> Tensor:
        need_image, need_text, need_scale, need_bias = (
            differentiable and need for need in ctx.needs_input_grad[:4]
        )
        with torch.autocast(image_BE.device.type, enabled=False):
            text_AE = gather_rows(text_BE, group=pairing.group)
            image_grad_BE = torch.zeros_like(image_BE) if need_image or need_scale else None
            text_grad_AE = torch.zeros_like(text_AE) if need_text else None
            loss, bias_grad = _add_blocks(
                image_grad_BE,
                text_grad_AE,
                features=(image_BE, text_AE),
                scale=scale,
                bias=bias,
                pairing=pairing,
                need_bias=need_bias,
            )
            loss = sum_(loss, group=pairing.group) / pairing.num_valid
            factor = pairing.ranks / pairing.num_valid
            scale_grad = text_grad_BE = None
            if need_scale:
                assert image_grad_BE is not None
                scale_grad = (image_grad_BE * image_BE).sum() * factor
            if need_image:
                assert image_grad_BE is not None
                image_grad_BE.mul_(factor * scale)
            if text_grad_AE is not None:
                text_grad_BE = scatter_row_sums(text_grad_AE, group=pairing.group).mul_(factor)
            if bias_grad is not None:
                bias_grad *= factor
        image_grad_BE = image_grad_BE if need_image else None
        ctx.save_for_backward(image_grad_BE, text_grad_BE, scale_grad, bias_grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad_loss,) = grad_outputs
        grads = (None if g is None else g * grad_loss for g in ctx.saved_tensors)
        return *grads, None, None


def _add_blocks(
    image_grad_BE: Tensor | None,
    text_grad_AE: Tensor | None,
    *,
    features: tuple[Tensor, Tensor],
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    need_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """Sums the loss over this rank's images and all texts and adds the gradients in place.

    The gradients are those of the plain sum; the image's lacks the factor `scale`.

    Returns:
        The sum of the losses and, if needed, of the logits' gradients, both 0-dim.
    """
    image_BE, text_AE = features
    need_grad = need_bias or image_grad_BE is not None or text_grad_AE is not None
    logits_buffer, scratch_buffer = pairing.buffer(image_BE), pairing.buffer(image_BE)
    losses, bias_grads = [], []
    for rows in pairing.row_blocks():
        scaled_XE = image_BE[rows] * scale
        for block in pairing.blocks(rows):
            text_YE = text_AE[block.columns]
            logits_XY = product(logits_buffer, scaled_XE, text_YE).add_(bias)
            scratch_XY = scratch_buffer[: logits_XY.numel()].view_as(logits_XY)
            # -logsigmoid(z x) = softplus(-z x)
            _negate_matches_(logits_XY, block, pairing, scratch_XY=scratch_XY)
            pairing.exclude_(logits_XY, block)
            losses.append(_softplus_sum(logits_XY, scratch_XY))
            if not need_grad:
                continue
            weight_XY = logits_XY.sigmoid_()
            _negate_matches_(weight_XY, block, pairing, scratch_XY=scratch_XY)
            if need_bias:
                bias_grads.append(weight_XY.sum())
            if image_grad_BE is not None:
                image_grad_BE[rows].addmm_(weight_XY, text_YE)
            if text_grad_AE is not None:
                text_grad_AE[block.columns].addmm_(weight_XY.T, scaled_XE)
    return torch.stack(losses).sum(), torch.stack(bias_grads).sum() if need_bias else None


def _softplus_sum(x_XY: Tensor, scratch_XY: Tensor) -> Tensor:
    """Sum of softplus(x) = max(x, 0) + log1p(exp(-|x|)); overwrites `scratch_XY`."""
    # Above `threshold` it returns x, which for 40 is exact in fp64; the default is not.
    return torch.ops.aten.softplus.out(x_XY, beta=1, threshold=40, out=scratch_XY).sum()


def _negate_matches_(x_XY: Tensor, block: Block, pairing: Pairing, *, scratch_XY: Tensor) -> None:
    """Changes, in place, the sign of a block's positives; overwrites `scratch_XY`."""
    if pairing.identity_A is None or not pairing.attract:
        block.own(x_XY).neg_()
        return
    # One factor of 1 or -1 per entry, built in place: a masked selection would need more blocks.
    x_XY *= scratch_XY.copy_(pairing.same(block)).mul_(-2).add_(1)
