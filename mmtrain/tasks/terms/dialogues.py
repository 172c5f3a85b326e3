"""The term of dialogues: what it costs to go on with them wrongly."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
        # The rows of the logits may hold several dialogues; `at_BT` says where each token stands.
        written: Any = (outputs["written"], rows["tokens_RS"])
        loss_RS = F.pad(token_losses(*written, shares=self.shares), (1, 0))
        right_RS = F.pad(right_tokens(*written, shares=self.shares), (1, 0))
        at_BT = rows["at_BT"]
        trained_BT = rows["trained_BT"][:, : at_BT.size(1)] & rows["valid_B"][:, None]
        columns = [
            (each_RS.flatten().gather(0, at_BT.flatten()).view_as(at_BT) * trained_BT).sum(1)
            for each_RS in (loss_RS, right_RS)
        ]
        return torch.stack([columns[0], columns[1].to(columns[0].dtype)], dim=1)

    def count(self, batch: Any) -> Tensor:
        """Trained tokens."""
        return (batch.trained_BT & batch.valid_B[:, None]).sum()
