"""Distillation from a teacher: of its similarities over a batch, and of its features."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from mmtrain.collectives import sum_
from mmtrain.losses._arguments import as_scalar
from mmtrain.losses._blocks import Block, Pairing, pair, product, whole_products
from mmtrain.losses._gradients import FeatureGradients, FinishedInForward
from mmtrain.losses._softmax import log_sum_exps
from mmtrain.nn import unit_norm


def affinity_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    *,
    teacher_image_BE: Tensor,
    teacher_text_BE: Tensor,
    logit_scale: Tensor | float,
    teacher_logit_scale: Tensor | float,
    group: ProcessGroup | None = None,
    valid_B: Tensor | None = None,
    equal_rows: bool = False,
    sum_loss: bool = True,
) -> Tensor:
    """How far the student's similarities of a global batch are from its teacher's.

    With p_i the softmax over j of the teacher's logits `scale' * <image'_i, text'_j>` and q_i that
    of the student's,

        loss = 1/(2 B) * sum_i KL(p_i || q_i) + the same with images and texts exchanged

    No more than one block of either's logits exists at a time: one walk over the blocks finds the
    log-sum-exps, a second one the loss and, where gradients are wanted, all of them; memory is
    O(B * E). Computed in fp32 (fp64 for fp64 features) under any autocast. Vasu et al. 2024
    (MobileCLIP), arXiv:2311.17049, Eq. 2 to 4.

    Args:
        image_BE, text_BE: the student's features of this rank's pairs; usually unit-norm, which is
            not required.
        teacher_image_BE, teacher_text_BE: the teacher's of the same pairs, of any width. Neither
            they nor the teacher's scale receive a gradient.
        logit_scale, teacher_logit_scale: the multipliers of the cosines, not their logarithms.
        group: ranks that share the global batch. The returned loss is the *global mean on every
            rank*; gradients (features and scale) are scaled so that their **mean** over the group
            is the gradient of that loss, which is what DDP and FSDP average.
        valid_B: bool; false rows are padding: in no softmax and not in the mean. Without any true
            row the loss is 0.
        equal_rows: the ranks are known to hold equally many rows and the same arguments: they do
            not ask each other, which would cost a collective.
        sum_loss: False: what is returned is this rank's share of the loss, for a caller that adds
            up the ranks' together with something else. The gradients are the same.

    Returns:
        The loss, 0-dim, fp32 or fp64. It can be differentiated once.

    Raises:
        ValueError: shapes or dtypes do not fit, or the ranks hold unequal numbers of rows.
    """
    pairing, texts = pair(
        {"image_BE": image_BE, "text_BE": text_BE},
        teacher={"teacher_image_BE": teacher_image_BE, "teacher_text_BE": teacher_text_BE},
        group=group,
        valid_B=valid_B,
        equal_rows=equal_rows,
    )
    # The texts that are computed with are the gathered ones; padding among them has no gradient.
    image_BE, text_BE = pairing.real(image_BE), text_BE.to(pairing.dtype)
    scale = as_scalar(logit_scale, name="logit_scale", like=image_BE)
    teacher = _Features(
        image_BE=pairing.real(teacher_image_BE),
        text_AE=texts[1],
        scale=as_scalar(teacher_logit_scale, name="teacher_logit_scale", like=image_BE),
    )
    given = _Given(
        teacher=teacher,
        text_AE=texts[0],
        pairing=pairing,
        differentiable=torch.is_grad_enabled(),
        sums=sum_loss,
    )
    return _AffinityLoss.apply(image_BE, text_BE, scale, given)


def feature_loss_B(x_BE: Tensor, teacher_BE: Tensor) -> Tensor:
    """Squared distance [B] of each row's direction from the teacher's: 2 - 2 cos, in 0 to 4.

    In fp32 at least; the teacher receives no gradient.

    Raises:
        ValueError: the shapes differ.
    """
    if x_BE.shape != teacher_BE.shape or x_BE.ndim != 2:
        raise ValueError(
            f"x_BE {tuple(x_BE.shape)} and teacher_BE {tuple(teacher_BE.shape)} must be equal and "
            "2-D: features are compared one by one"
        )
    # As a difference: 2 - 2 cos has no correct digit left where the two are almost equal.
    return (unit_norm(x_BE) - unit_norm(teacher_BE.detach())).square().sum(1)


@dataclass(frozen=True, kw_only=True)
class _Features:
    """One model's features and its logits' multiplier."""

    image_BE: Tensor
    text_AE: Tensor
    """Of all ranks' pairs."""
    scale: Tensor


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What no gradient is wanted of."""

    teacher: _Features
    text_AE: Tensor
    pairing: Pairing
    differentiable: bool
    sums: bool


class _AffinityLoss(FinishedInForward):
    """The streamed loss."""

    @staticmethod
    def forward(
        ctx: Any,
        image_BE: Tensor,
        text_BE: Tensor,
        scale: Tensor,
        given: _Given,
    ) -> Tensor:
        pairing = given.pairing
        need_image, need_text, need_scale = (
            given.differentiable and need for need in ctx.needs_input_grad[:3]
        )
        with whole_products(image_BE.device):
            mine = _Features(image_BE=image_BE, text_AE=given.text_AE, scale=scale)
            student, target = _Softmaxes.of(mine, pairing), _Softmaxes.of(given.teacher, pairing)
            gradients = FeatureGradients.zeros(
                image_BE if need_image or need_scale else None,
                student.text_AE if need_text else None,
            )
            loss = _add_blocks(gradients, student=student, target=target, pairing=pairing)
        loss = (sum_(loss, group=pairing.group) if given.sums else loss) / (2 * pairing.num_valid)
        factor = pairing.ranks / (2 * pairing.num_valid)
        scale_grad = gradients.of_scale(image_BE, factor=factor) if need_scale else None
        image_grad_BE = gradients.of_images(factor * scale) if need_image else None
        text_grad_BE = gradients.of_texts(factor, group=pairing.group)
        ctx.save_for_backward(image_grad_BE, text_grad_BE, scale_grad)
        return loss


@dataclass(frozen=True, kw_only=True)
class _Softmaxes:
    """One model's softmaxes of the global batch, over the rows and over the columns.

    Those of a row or column of padding are the same to the bit in any two models, since its
    features are zeros; so they do not diverge.
    """

    scaled_BE: Tensor
    """This rank's images times the multiplier."""
    text_AE: Tensor
    row_lse_B: Tensor
    column_lse_A: Tensor

    @classmethod
    def of(cls, features: _Features, pairing: Pairing) -> "_Softmaxes":
        """What `log_probabilities` needs, over all ranks."""
        row_lse_B, column_lse_A, _ = log_sum_exps(
            features.image_BE, features.text_AE, features.scale, pairing
        )
        return cls(
            scaled_BE=features.image_BE * features.scale,
            text_AE=features.text_AE,
            row_lse_B=row_lse_B,
            column_lse_A=column_lse_A,
        )

    def log_probabilities(
        self, block: Block, pairing: Pairing, *, buffers: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """A block's logarithms of both softmaxes, over rows and over columns, in two buffers."""
        logits_XY = product(buffers[0], self.scaled_BE[block.rows], self.text_AE[block.columns])
        pairing.exclude_(logits_XY, block)
        other_XY = buffers[1][: logits_XY.numel()].view_as(logits_XY)
        torch.sub(logits_XY, self.column_lse_A[block.columns], out=other_XY)
        return logits_XY.sub_(self.row_lse_B[block.rows, None]), other_XY


def _add_blocks(
    gradients: FeatureGradients, *, student: _Softmaxes, target: _Softmaxes, pairing: Pairing
) -> Tensor:
    """The sum of the divergences over this rank's images and all texts, 0-dim.

    Adds the gradients of that plain sum.
    """
    *buffers, scratch_buffer = (pairing.buffer(student.scaled_BE) for _ in range(5))
    sums = []
    for rows in pairing.row_blocks():
        for block in pairing.blocks(rows):
            log_q = student.log_probabilities(block, pairing, buffers=buffers[:2])
            log_p = target.log_probabilities(block, pairing, buffers=buffers[2:])
            scratch_XY = scratch_buffer[: log_q[0].numel()].view_as(log_q[0])
            for log_q_XY, log_p_XY in zip(log_q, log_p, strict=True):
                sums.append(_divergence_(log_q_XY, log_p_XY, scratch_XY))
            weight_XY = log_q[0].add_(log_q[1])  # q - p by now
            gradients.add_(
                weight_XY,
                block,
                scaled_XE=student.scaled_BE[rows],
                text_YE=student.text_AE[block.columns],
            )
    return torch.stack(sums).sum()


def _divergence_(log_q_XY: Tensor, log_p_XY: Tensor, scratch_XY: Tensor) -> Tensor:
    """A block's part of the sum of KL(p || q).

    In place of log q it leaves q - p, the gradient of q's logits; the others are overwritten.
    """
    torch.sub(log_p_XY, log_q_XY, out=scratch_XY)
    p_XY = log_p_XY.exp_()
    log_q_XY.exp_().sub_(p_XY)
    return scratch_XY.mul_(p_XY).sum()
