"""Ranks from scores, with ties broken the same way everywhere."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from mmtrain.eval.encode import own_batches

MAX_SCORES = 2**24
"""Scores held at once: 64 MiB of float32, whatever the number of images and texts."""


def blocks(num_rows: int, num_columns: int) -> list[slice]:
    """The rows in blocks of at most MAX_SCORES scores."""
    size = max(1, MAX_SCORES // num_columns)
    return [slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def own_blocks(group: ProcessGroup | None, num_rows: int, num_columns: int) -> Iterator[slice]:
    """This rank's blocks; a block holds the same rows whatever the number of ranks."""
    every = blocks(num_rows, num_columns)
    for number in own_batches(len(every), group):
        if number is not None:
            yield every[number]


def rank_of_target(scores_BM: Tensor, target_B: Tensor) -> Tensor:
    """How many candidates come before the target, 0 being the first place: int64 [B].

    Of equal scores the candidate with the lower index comes first, so a model that tells nothing
    apart is right about as often as chance.
    """
    own_B1 = scores_BM.gather(1, target_B[:, None])
    index_M = torch.arange(scores_BM.size(1), device=scores_BM.device)
    before_BM = (scores_BM > own_B1) | ((scores_BM == own_B1) & (index_M < target_B[:, None]))
    return before_BM.sum(1)


def rank_of_any(
    scores_BM: Tensor, row_P: Tensor, column_P: Tensor, copies_M: Tensor
) -> tuple[Tensor, Tensor]:
    """Places before the best of each row's targets, and its lead over the best other candidate.

    Args:
        scores_BM: overwritten.
        row_P: the row of each (row, target) pair; every row has at least one.
        column_P: the target of each pair.
        copies_M: how many candidates a column stands for.

    Returns:
        Ranks as `rank_of_target` counts them, int64 [B], and leads, float32 [B]: negative where
        another candidate scores higher, infinite where there is no other.
    """
    B, M = scores_BM.shape
    score_P = scores_BM[row_P, column_P]
    own_B = scores_BM.new_empty(B).scatter_reduce(0, row_P, score_P, "amax", include_self=False)
    first_P = torch.where(score_P == own_B[row_P], column_P, M)
    first_B = first_P.new_empty(B).scatter_reduce(0, row_P, first_P, "amin", include_self=False)
    scores_BM[row_P, column_P] = -torch.inf
    own_B1 = own_B[:, None]
    index_M = torch.arange(M, device=scores_BM.device)
    before_BM = (scores_BM > own_B1) | ((scores_BM == own_B1) & (index_M < first_B[:, None]))
    rank_B = torch.where(before_BM, copies_M.int(), 0).sum(1)
    return rank_B, own_B - scores_BM.amax(1)


def best_and_worst(rank_N: Tensor, lead_N: Tensor, *, num: int) -> tuple[list[int], list[int]]:
    """Indices of the `num` clearest successes and of the `num` worst failures, none in both.

    By rank, then by lead over the best other candidate, then by index.
    """
    keys = zip(rank_N.tolist(), (-lead_N).tolist(), range(len(rank_N)), strict=True)
    order = [index for _, _, index in sorted(keys)]
    return order[:num], order[num:][::-1][:num]
