"""Losses of answers: chosen from a vocabulary, or written token by token."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.losses.vocabulary import VocabularyShares, sharded_argmax, sharded_cross_entropy

AnswerLoss = Literal["bce", "ce"]


def soft_targets(id_QK: Tensor, score_QK: Tensor, num_answers: int) -> Tensor:
    """Scores [Q, A] of all answers from those of the right ones.

    Args:
        id_QK: places of right answers; negative ones fill up and count nothing.
        score_QK: how right each is.
        num_answers: A.
    """
    target_QA = score_QK.new_zeros(id_QK.size(0), num_answers)
    return target_QA.scatter_add(1, id_QK.clamp(min=0), score_QK * (id_QK >= 0))


def choice_loss(logits_QA: Tensor, target_QA: Tensor, *, kind: AnswerLoss) -> Tensor:
    """Each question's loss [Q], in fp32 at least, against soft targets in [0, 1].

    bce: sum over the answers of the binary cross-entropy, that is the mean times their number
    (Teney et al. 2017, arXiv:1708.02711, Eq. 3; Pythia's scale). ce: cross-entropy against the
    targets scaled to sum to 1; 0 where no answer of the vocabulary is right.

    Raises:
        ValueError: the kind is unknown.
    """
    logits_QA = logits_QA.to(torch.promote_types(logits_QA.dtype, torch.float32))
    target_QA = target_QA.to(logits_QA.dtype)
    if kind == "bce":
        each_QA = F.binary_cross_entropy_with_logits(logits_QA, target_QA, reduction="none")
        return each_QA.sum(1)
    if kind == "ce":
        share_QA = target_QA / target_QA.sum(1, keepdim=True).clamp(min=1e-12)
        return -(share_QA * logits_QA.log_softmax(1)).sum(1)
    raise ValueError(f'answer_loss = "{kind}" is unknown; use bce or ce')


def writing_loss(
    logits_QTV: Tensor,
    tokens_QT: Tensor,
    mask_QT: Tensor,
    *,
    shares: VocabularyShares | None = None,
) -> Tensor:
    """Each row's sum [Q] of the cross-entropies of the tokens that `mask_QT` marks, in fp32.

    The logits at t are of the token at t + 1; so a mark on the first token counts nothing. With
    `shares` the logits are those of this rank's share of the vocabulary.
    """
    each_N = token_losses(logits_QTV[:, :-1].flatten(0, 1), tokens_QT[:, 1:].flatten(), shares)
    return (each_N.view(tokens_QT.size(0), -1) * mask_QT[:, 1:]).sum(1)


def token_losses(logits_NV: Tensor, target_N: Tensor, shares: VocabularyShares | None) -> Tensor:
    """Cross-entropies [N], in fp32 at least; `shares` as above."""
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if shares is None:
        return F.cross_entropy(logits_NV, target_N, reduction="none")
    return sharded_cross_entropy(logits_NV, target_N, shares=shares)


@torch.no_grad()
def num_right_tokens(
    logits_QTV: Tensor,
    tokens_QT: Tensor,
    mask_QT: Tensor,
    *,
    shares: VocabularyShares | None = None,
) -> Tensor:
    """How many [Q] of each row's marked tokens have the largest logit; arguments as above."""
    right_N = right_tokens(logits_QTV[:, :-1].flatten(0, 1), tokens_QT[:, 1:].flatten(), shares)
    return (right_N.view(tokens_QT.size(0), -1) & mask_QT[:, 1:]).sum(1)


@torch.no_grad()
def right_tokens(logits_NV: Tensor, target_N: Tensor, shares: VocabularyShares | None) -> Tensor:
    """Whether the largest logit is the token's, [N]; `shares` as above."""
    said_N = logits_NV.argmax(1) if shares is None else sharded_argmax(logits_NV, shares=shares)
    return said_N == target_N
