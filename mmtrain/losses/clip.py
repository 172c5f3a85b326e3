"""Softmax contrastive loss (InfoNCE), exact, in memory O(B * E)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from mmtrain.collectives import sum_
from mmtrain.losses._arguments import as_scalar
from mmtrain.losses._blocks import Pairing, Positives, pair, product, whole_products
from mmtrain.losses._gradients import FeatureGradients
from mmtrain.losses._softmax import log_sum_exps


def clip_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    *,
    logit_scale: Tensor | float,
    group: ProcessGroup | None = None,
    labels_B: Tensor | None = None,
    positives: Positives = "attract",
    valid_B: Tensor | None = None,
    equal_rows: bool = False,
    sum_loss: bool = True,
    row_loss_B: Tensor | None = None,
) -> Tensor:
    """Mean of image-to-text and text-to-image cross-entropy over the global batch.

    With logits `s_ij = scale * <image_i, text_j>` and targets t_ij (each row and column sums to 1)

        loss = 1/(2 B) * sum_i [ lse_j s_ij - sum_j t_ij s_ij ] + the same over columns

    The logits exist one block at a time, in forward and in backward, which recomputes them: memory
    is O(B * E). Both directions come from one pass over the blocks. Features narrower than fp32
    are widened first, so products, log-sum-exp and sums are fp32 (fp64 for fp64 features) under any
    autocast. Radford et al. 2021, arXiv:2103.00020, Fig. 3; several positives as in Khosla et al.
    2020, arXiv:2004.11362, eq. 2; online log-sum-exp as in Milakov and Gimelshein 2018,
    arXiv:1805.02867.

    Args:
        image_BE, text_BE: features of this rank's pairs; usually unit-norm, which is not required.
        logit_scale: the multiplier of the cosines, not its logarithm; one number.
        group: ranks that share the global batch. The returned loss is the *global mean on every
            rank*; gradients (features and scale) are scaled so that their **mean** over the group
            is the gradient of that loss, which is what DDP and FSDP average.
        labels_B: int64; rows of equal label, on any rank, match each other; -1 matches nothing.
        positives: what equal labels do. "attract": targets are uniform over all matching texts of
            the global batch. "ignore": the target stays the own text and the other matching ones
            are no negatives.
        valid_B: bool; false rows are padding: no anchors, no negatives, not in the mean. Without
            any true row the loss is 0.
        equal_rows: the ranks are known to hold equally many rows and the same arguments: they do
            not ask each other, which would cost a collective.
        sum_loss: False: what is returned is this rank's share of the loss, for a caller that adds
            up the ranks' together with something else. The gradients are the same.
        row_loss_B: is filled with each row's part, whose mean over the real rows is the loss: half
            of what its image and half of what its text lose (several positives counted from the
            image's side in both); 0 on padding.

    Returns:
        The loss, 0-dim, fp32 or fp64. It can be differentiated once.

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
    return _ClipLoss.apply(image_BE, text_BE, scale, text_AE, pairing, sum_loss, row_loss_B)


class _ClipLoss(torch.autograd.Function):
    """The streamed loss. Its backward needs only the log-sum-exps of the rows and columns."""

    @staticmethod
    def forward(
        ctx: Any,
        image_BE: Tensor,
        text_BE: Tensor,
        scale: Tensor,
        text_AE: Tensor,
        pairing: Pairing,
        sums: bool,
        told_B: Tensor | None,
    ) -> Tensor:
        with whole_products(image_BE.device):
            row_lse_B, column_lse_A, positive_B = log_sum_exps(image_BE, text_AE, scale, pairing)
            class_A = _classes(pairing)
            if class_A is not None:
                mean_BE = _match_means(text_AE, class_A, class_A, pairing.local(class_A))
                positive_B = (image_BE * mean_BE).sum(1) * scale
            # Over the whole batch the targets' share is the same seen from rows and from columns.
            loss_B = (row_lse_B - positive_B) + (pairing.local(column_lse_A) - positive_B)
            if pairing.valid_A is not None:
                valid_B = pairing.local(pairing.valid_A)
                loss_B = loss_B.where(valid_B, 0)
                # exp(x - inf) = 0: padding gets no weight in backward.
                row_lse_B.masked_fill_(~valid_B, torch.inf)
                column_lse_A.masked_fill_(~pairing.valid_A, torch.inf)
            if told_B is not None:
                told_B.copy_(loss_B / 2)
            loss = loss_B.sum()
            loss = (sum_(loss, group=pairing.group) if sums else loss) / (2 * pairing.num_valid)
        ctx.save_for_backward(image_BE, text_AE, scale, row_lse_B, column_lse_A, class_A)
        ctx.pairing = pairing
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad_loss,) = grad_outputs
        image_BE, text_AE, scale, row_lse_B, column_lse_A, class_A = ctx.saved_tensors
        pairing: Pairing = ctx.pairing
        need_image, need_text, need_scale = ctx.needs_input_grad[:3]
        gradients = FeatureGradients.zeros(
            image_BE if need_image or need_scale else None, text_AE if need_text else None
        )
        with whole_products(image_BE.device):
            _add_block_gradients(
                gradients,
                features=(image_BE, text_AE),
                scale=scale,
                log_sum_exps=(row_lse_B, column_lse_A),
                pairing=pairing,
            )
            if class_A is not None:
                class_B = pairing.local(class_A)
                if gradients.image_BE is not None:
                    mean_BE = _match_means(text_AE, class_A, class_A, class_B)
                    gradients.image_BE.sub_(2 * mean_BE)
                if gradients.text_AE is not None:
                    mean_AE = _match_means(image_BE, class_A, class_B, class_A)
                    gradients.text_AE.sub_(2 * scale * mean_AE)
        factor = grad_loss * pairing.ranks / (2 * pairing.num_valid)
        scale_grad = gradients.of_scale(image_BE, factor=factor) if need_scale else None
        image_grad_BE = gradients.of_images(factor * scale) if need_image else None
        text_grad_BE = gradients.of_texts(factor, group=pairing.group)
        return image_grad_BE, text_grad_BE, scale_grad, None, None, None, None


def _add_block_gradients(
    gradients: FeatureGradients,
    *,
    features: tuple[Tensor, Tensor],
    scale: Tensor,
    log_sum_exps: tuple[Tensor, Tensor],
    pairing: Pairing,
) -> None:
    """Adds the streamed part of the gradients, of this rank's images against all texts, in place.

    Up to the factor 1 / (2 * num_valid), which the caller applies, and for the image the scale:
    dloss/ds_ij = exp(s_ij - row_lse_i) + exp(s_ij - column_lse_j) - 2 t_ij. The targets t are
    subtracted here when they are the diagonal, else by the caller.
    """
    (image_BE, text_AE), (row_lse_B, column_lse_A) = features, log_sum_exps
    subtract_own = pairing.identity_A is None or not pairing.attract
    logits_buffer, scratch_buffer = pairing.buffer(image_BE), pairing.buffer(image_BE)
    for rows in pairing.row_blocks():
        scaled_XE = image_BE[rows] * scale
        row_lse_X1 = row_lse_B[rows, None]
        for block in pairing.blocks(rows):
            text_YE = text_AE[block.columns]
            logits_XY = product(logits_buffer, scaled_XE, text_YE)
            pairing.exclude_(logits_XY, block)
            weight_XY = scratch_buffer[: logits_XY.numel()].view_as(logits_XY)
            torch.sub(logits_XY, row_lse_X1, out=weight_XY).exp_()
            weight_XY += logits_XY.sub_(column_lse_A[block.columns]).exp_()
            if subtract_own:
                block.own(weight_XY).sub_(2)
            gradients.add_(weight_XY, block, scaled_XE=scaled_XE, text_YE=text_YE)


def _classes(pairing: Pairing) -> Tensor | None:
    """A number below A for each pair, equal where identities are; None if only own pairs match.

    The first place of an identity in sorted order is such a number, and unlike `unique` a search
    does not make the host wait for the device.
    """
    if pairing.identity_A is None or not pairing.attract:
        return None
    return torch.searchsorted(pairing.identity_A.sort().values, pairing.identity_A)


def _match_means(x_E: Tensor, class_A: Tensor, from_class: Tensor, to_class: Tensor) -> Tensor:
    """For each row of `to_class`, the sum of the features of its class over the class's size.

    Args:
        x_E: features whose classes are `from_class`: those of all pairs, or a rank's own.
        class_A: classes of all pairs; the size counts these.
    """
    num_A = torch.zeros_like(class_A, dtype=x_E.dtype)
    num_A.index_add_(0, class_A, torch.ones_like(num_A))
    sum_AE = x_E.new_zeros(class_A.shape[0], x_E.shape[1]).index_add_(0, from_class, x_E)
    return sum_AE[to_class] / num_A[to_class, None]
