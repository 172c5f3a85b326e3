"""The terms of answers: what it costs to choose or to write a wrong one."""

from typing import Any

import torch
from torch import Tensor

from mmtrain.data.questions.batches import NO_ANSWER, VqaBatch, label_mask
from mmtrain.losses.answer import (
    AnswerLoss,
    choice_loss,
    num_right_tokens,
    soft_targets,
    writing_loss,
)
from mmtrain.losses.vocabulary import VocabularyShares
from mmtrain.tasks.terms.term import Outputs, Rows, RowTerm


class AnswerTerm(RowTerm):
    """Of each question its loss, and how much of it was right."""

    num_columns = 2

    def figures(self, sums: list[float], count: float) -> dict[str, float]:
        """Share of right choices, or of right tokens, in the batch."""
        return {"answer_accuracy": sums[1] / max(count, 1)}


class ChoiceTerm(AnswerTerm):
    """Choosing among known answers: the mean over questions that have one.

    Args:
        loss: see AnswerLossConfig.classify.
    """

    kind = "choice"

    def __init__(self, loss: AnswerLoss) -> None:
        self.loss: AnswerLoss = loss

    def columns(self, outputs: Outputs, rows: Rows) -> Tensor:
        logits_QA, valid_Q = outputs["choice"], rows["valid_Q"]
        target_QA = soft_targets(rows["answer_id_QK"], rows["answer_score_QK"], logits_QA.size(1))
        loss_Q = choice_loss(logits_QA, target_QA, kind=self.loss) * valid_Q
        right_Q = target_QA.gather(1, logits_QA.argmax(1, keepdim=True))[:, 0] * valid_Q
        return torch.stack([loss_Q, right_Q.to(loss_Q.dtype)], dim=1)

    def count(self, batch: VqaBatch) -> Tensor:
        """Questions with an answer."""
        known_Q = batch.valid_Q
        if self.loss == "ce":
            # Without a right answer in the vocabulary there is no softmax to ask for.
            known_Q = known_Q & (batch.answer_id_QK != NO_ANSWER).any(1)
        return known_Q.sum()


class WritingTerm(AnswerTerm):
    """Writing an answer: the mean over its tokens.

    Args:
        shares: of the vocabulary, where ranks share it.
        weight: beside a choice.
    """

    kind = "writing"

    def __init__(self, shares: VocabularyShares | None, *, weight: float = 1.0) -> None:
        self.shares, self.weight = shares, weight

    def columns(self, outputs: Outputs, rows: Rows) -> Tensor:
        tokens_QT, start_Q = rows["tokens_QT"], rows["question_length_Q"]
        mask_QT = label_mask(tokens_QT, start_Q, rows["length_Q"]) & rows["valid_Q"][:, None]
        written: Any = (outputs["written"], tokens_QT, mask_QT)
        loss_Q = writing_loss(*written, shares=self.shares)
        right_Q = num_right_tokens(*written, shares=self.shares)
        return torch.stack([loss_Q, right_Q.to(loss_Q.dtype)], dim=1)

    def count(self, batch: VqaBatch) -> Tensor:
        """Supervised tokens."""
        return (batch.label_mask_QT & batch.valid_Q[:, None]).sum()
