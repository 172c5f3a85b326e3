"""Log-sum-exps of the rows and columns of logits that exist one block at a time."""

import torch
from torch import Tensor

from mmtrain.collectives import max_, sum_
from mmtrain.losses._blocks import Pairing, product


def log_sum_exps(
    image_BE: Tensor, text_AE: Tensor, scale: Tensor, pairing: Pairing
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of each row (B) and column (A, over all ranks), and each row's own logit (B)."""
    logits_buffer, scratch_buffer = pairing.buffer(image_BE), pairing.buffer(image_BE)
    row_B, own_B = image_BE.new_empty(pairing.num_rows), image_BE.new_empty(pairing.num_rows)
    column_top_A = image_BE.new_full((pairing.num_columns,), -torch.inf)
    column_sum_A = image_BE.new_zeros(pairing.num_columns)
    for rows in pairing.row_blocks():
        scaled_XE = image_BE[rows] * scale
        row_top_X = scaled_XE.new_full((scaled_XE.shape[0],), -torch.inf)
        row_sum_X = torch.zeros_like(row_top_X)
        for block in pairing.blocks(rows):
            logits_XY = product(logits_buffer, scaled_XE, text_AE[block.columns])
            own_B[block.own_rows] = block.own(logits_XY)
            pairing.exclude_(logits_XY, block)
            scratch_XY = scratch_buffer[: logits_XY.numel()].view_as(logits_XY)
            _accumulate_(row_top_X, row_sum_X, logits_XY, dim=1, scratch_XY=scratch_XY)
            _accumulate_(
                column_top_A[block.columns],
                column_sum_A[block.columns],
                logits_XY,
                dim=0,
                scratch_XY=logits_XY,
            )
        row_B[rows] = row_top_X + row_sum_X.log()
    # Each rank has summed the columns over its own images only.
    top_A = max_(column_top_A.clone(), group=pairing.group)
    column_sum_A.mul_((column_top_A - top_A).exp_())
    column_A = top_A + sum_(column_sum_A, group=pairing.group).log_()
    return row_B, column_A, own_B


def _accumulate_(
    top: Tensor, total: Tensor, logits_XY: Tensor, *, dim: int, scratch_XY: Tensor
) -> None:
    """Adds a block to a running sum of exponentials along `dim`: sum of exp(x) = exp(top) * total.

    `scratch_XY` is overwritten; it may be the logits themselves when they are needed no more.
    """
    new_top = torch.maximum(top, logits_XY.amax(dim))
    torch.sub(logits_XY, new_top.unsqueeze(dim), out=scratch_XY).exp_()
    total.mul_((top - new_top).exp_()).add_(scratch_XY.sum(dim))
    top.copy_(new_top)
