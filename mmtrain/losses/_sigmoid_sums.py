"""Loss and gradients of the pairwise sigmoid, summed up block by block while images come."""

from dataclasses import replace

import torch
from torch import Tensor

from mmtrain.collectives import sum_
from mmtrain.losses._blocks import Block, Pairing, product, whole_products
from mmtrain.losses._gradients import FeatureGradients


class SigmoidSums:
    """All texts of all ranks, and what the images seen so far make of them.

    A pair's loss and gradient need no other pair, so the images may come in any parts.
    """

    def __init__(
        self,
        text_AE: Tensor,
        *,
        scale: Tensor,
        bias: Tensor,
        pairing: Pairing,
        need_text: bool = True,
        need_scale: bool = True,
        need_bias: bool = True,
    ) -> None:
        self._text_AE = text_AE
        self._scale = scale
        self._bias = bias
        self._pairing = pairing
        self._gradients = FeatureGradients.zeros(None, self._text_AE if need_text else None)
        self._losses: list[Tensor] = []
        self._scale_grads: list[Tensor] | None = [] if need_scale else None
        self._bias_grads: list[Tensor] | None = [] if need_bias else None
        self._factor = pairing.ranks / pairing.num_valid

    def add(
        self,
        image_XE: Tensor,
        *,
        pairing: Pairing,
        need_image: bool = True,
        told_X: Tensor | None = None,
    ) -> Tensor | None:
        """Visits the blocks of these images, and returns their gradient [X, E] if it is wanted.

        Args:
            image_XE: all of this rank's images or a part of them.
            pairing: of these alone, see `Pairing.part`.
            need_image: whether a gradient is wanted.
            told_X: is filled with what each image loses beside all texts.
        """
        need_grad = need_image or self._scale_grads is not None
        image_grad_XE = torch.zeros_like(image_XE) if need_grad else None
        gradients = replace(self._gradients, image_BE=image_grad_XE)
        with whole_products(image_XE.device):
            loss, bias_grad = _add_blocks(
                gradients,
                features=(image_XE, self._text_AE),
                scale=self._scale,
                bias=self._bias,
                pairing=pairing,
                need_bias=self._bias_grads is not None,
                told_X=told_X,
            )
        self._losses.append(loss)
        if self._bias_grads is not None:
            assert bias_grad is not None
            self._bias_grads.append(bias_grad * self._factor)
        if self._scale_grads is not None:
            self._scale_grads.append(gradients.of_scale(image_XE, factor=self._factor))
        return gradients.of_images(self._factor * self._scale) if need_image else None

    def finish(
        self, *, sum_loss: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The loss over all ranks or this rank's share of it; the gradients of this rank's texts,
        of the scale and of the bias, where they are wanted."""
        group = self._pairing.group
        loss = torch.stack(self._losses).sum()
        loss = (sum_(loss, group=group) if sum_loss else loss) / self._pairing.num_valid
        text_grad_BE = self._gradients.of_texts(self._factor, group=group)
        scale_grad, bias_grad = (
            None if grads is None else torch.stack(grads).sum()
            for grads in (self._scale_grads, self._bias_grads)
        )
        return loss, text_grad_BE, scale_grad, bias_grad


def _add_blocks(
    gradients: FeatureGradients,
    *,
    features: tuple[Tensor, Tensor],
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    need_bias: bool,
    told_X: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Sums the loss over these images and all texts and adds the gradients of that plain sum.

    Returns:
        The sum of the losses and, if needed, of the logits' gradients, both 0-dim.
    """
    image_XE, text_AE = features
    logits_buffer, scratch_buffer = pairing.buffer(image_XE), pairing.buffer(image_XE)
    losses, bias_grads = [], []
    if told_X is not None:
        told_X.zero_()
    for rows in pairing.row_blocks():
        scaled_XE = image_XE[rows] * scale
        for block in pairing.blocks(rows):
            text_YE = text_AE[block.columns]
            logits_XY = product(logits_buffer, scaled_XE, text_YE).add_(bias)
            scratch_XY = scratch_buffer[: logits_XY.numel()].view_as(logits_XY)
            # -logsigmoid(z x) = softplus(-z x)
            _negate_matches_(logits_XY, block, pairing, scratch_XY=scratch_XY)
            pairing.exclude_(logits_XY, block)
            _softplus_(logits_XY, scratch_XY)
            losses.append(scratch_XY.sum())
            if told_X is not None:
                told_X[rows] += scratch_XY.sum(1)
            if not need_bias and not gradients.wanted:
                continue
            weight_XY = logits_XY.sigmoid_()
            _negate_matches_(weight_XY, block, pairing, scratch_XY=scratch_XY)
            if need_bias:
                bias_grads.append(weight_XY.sum())
            gradients.add_(weight_XY, block, scaled_XE=scaled_XE, text_YE=text_YE)
    return torch.stack(losses).sum(), torch.stack(bias_grads).sum() if need_bias else None


def _softplus_(x_XY: Tensor, scratch_XY: Tensor) -> None:
    """softplus(x) = max(x, 0) + log1p(exp(-|x|)), written into `scratch_XY`."""
    # Above `threshold` it returns x, which for 40 is exact in fp64; the default is not.
    torch.ops.aten.softplus.out(x_XY, beta=1, threshold=40, out=scratch_XY)


def _negate_matches_(x_XY: Tensor, block: Block, pairing: Pairing, *, scratch_XY: Tensor) -> None:
    """Changes, in place, the sign of a block's positives; overwrites `scratch_XY`."""
    if pairing.identity_A is None or not pairing.attract:
        block.own(x_XY).neg_()
        return
    # One factor of 1 or -1 per entry, built in place: a masked selection would need more blocks.
    x_XY *= scratch_XY.copy_(pairing.same(block)).mul_(-2).add_(1)
