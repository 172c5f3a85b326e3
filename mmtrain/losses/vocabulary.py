"""Cross-entropy over a vocabulary that the ranks of a group share out.

Megatron-LM's (Shoeybi et al., arXiv:1909.08053, section 3): each rank has the logits of its share
of the entries, and no rank ever has them all.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmtrain.collectives import gather_rows, max_, rank_and_size, sum_


@dataclass(frozen=True, kw_only=True)
class VocabularyShares:
    """Who has which entries: ceil(V / ranks) each in the order of the ranks, the last ones less."""

    group: dist.ProcessGroup
    """The ranks."""
    vocab_size: int
    """V, over all of them."""

    @property
    def first(self) -> int:
        """This rank's first entry."""
        rank, size = rank_and_size(self.group)
        return rank * -(-self.vocab_size // size)


class _CrossEntropy(torch.autograd.Function):
    """Per-row cross-entropy; its backward needs no other rank."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, target_N: Tensor, shares: VocabularyShares) -> Tensor:
        group = shares.group
        local_N = target_N - shares.first
        here_N = (local_N >= 0) & (local_N < logits_NV.size(1))
        local_N = torch.where(here_N, local_N, 0)
        top_N = max_(logits_NV.amax(1), group=group)
        sum_N = sum_((logits_NV - top_N[:, None]).exp().sum(1), group=group)
        found_N = logits_NV.gather(1, local_N[:, None])[:, 0]
        found_N = sum_(torch.where(here_N, found_N, 0), group=group)
        lse_N = sum_N.log() + top_N
        ctx.save_for_backward(logits_NV, lse_N, local_N, here_N)
        return lse_N - found_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, lse_N, local_N, here_N = ctx.saved_tensors
        p_NV = (logits_NV - lse_N[:, None]).exp()
        p_NV.scatter_add_(1, local_N[:, None], -here_N[:, None].to(p_NV.dtype))
        return p_NV * gradients[0][:, None], None, None


def sharded_cross_entropy(
    logits_NV: Tensor, target_N: Tensor, *, shares: VocabularyShares
) -> Tensor:
    """Cross-entropy [N] of each row, the same on every rank of the group.

    Its gradient is that of this rank's logits; whoever computed them from features that all ranks
    have adds up the features' gradients.

    Args:
        logits_NV: of this rank's share of the entries.
        target_N: entries of the whole vocabulary.
        shares: who has which.
    """
    return _CrossEntropy.apply(logits_NV, target_N, shares)


@torch.no_grad()
def sharded_argmax(logits_NV: Tensor, *, shares: VocabularyShares) -> Tensor:
    """The entry [N] of the largest logit, the first of equal ones, the same on every rank."""
    best = logits_NV.max(1)
    values_RN = gather_rows(best.values[None], group=shares.group)
    entries_RN = gather_rows(best.indices[None] + shares.first, group=shares.group)
    return entries_RN.gather(0, values_RN.argmax(0, keepdim=True))[0]
