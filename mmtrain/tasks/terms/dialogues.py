"""The term of dialogues: what it costs to go on with them wrongly."""

from typing import Any

import torch
from torch import Tensor

from mmtrain.losses.answer import right_tokens, token_losses
from mmtrain.losses.vocabulary import VocabularyShares
from mmtrain.tasks.terms.answers import AnswerTerm
from mmtrain.tasks.terms.term import Outputs, Rows


class DialogueTerm(AnswerTerm):
    """What the assistant says: the mean over its tokens in the global batch.

    Args:
        shares: of the vocabulary, where ranks share it.
    """

    kind = "writing"

    def __init__(self, shares: VocabularyShares | None) -> None:
        self.shares = shares

    def columns(self, outputs: Outputs, rows: Rows) -> Tensor:
        # Of the learnt tokens alone, M of all dialogues one after another.
        written: Any = (outputs["written"][0], rows["target_M"], self.shares)
        loss_M, right_M = token_losses(*written), right_tokens(*written)
        at_BL, counted_BL = rows["at_BL"], rows["counted_BL"] & rows["valid_B"][:, None]
        columns = [
            (each_M.gather(0, at_BL.flatten()).view_as(at_BL) * counted_BL).sum(1)
            for each_M in (loss_M, right_M.to(loss_M.dtype))
        ]
        return torch.stack(columns, dim=1)

    def count(self, batch: Any) -> Tensor:
        """Trained tokens."""
        return (batch.trained_BT & batch.valid_B[:, None]).sum()
