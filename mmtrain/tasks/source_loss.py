"""What each source of a mixture loses, summed on the device until somebody reads it."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from mmtrain.data.batch import ImageTextBatch
from mmtrain.parallel.mesh import Layout
from mmtrain.tasks.terms.contrastive import ContrastiveTerm


class SourceLoss:
    """The mean over the rows of each source of their parts of the contrastive loss.

    Args:
        term: the contrastive loss, of whose batches each row says its source.
        names: of the sources.
        layout: the mesh.
    """

    def __init__(self, term: ContrastiveTerm, names: Sequence[str], layout: Layout) -> None:
        self._term, self._names, self._layout = term, names, layout
        self._own_2S = self._all_2S = self._nothing()

    def _nothing(self) -> torch.Tensor:
        """Sums of losses and numbers of rows, fp64 [2, sources]."""
        return torch.zeros(2, len(self._names), dtype=torch.float64, device=self._layout.device)

    @torch.no_grad()
    def add(self, batch: ImageTextBatch) -> None:
        """Take up the rows of the step that the term has just done; the host waits for nothing."""
        assert batch.source_B is not None
        loss_B, self._term.row_loss_B = self._term.row_loss_B, None
        if loss_B is not None:  # else the loss is another stage's
            of_2B = torch.stack([loss_B, batch.valid_B.double()])
            self._own_2S.index_add_(1, batch.source_B, of_2B)

    def settle(self) -> None:
        """Bring together what all ranks summed up since they did so last. Collective."""
        self._all_2S, self._own_2S = self._own_2S, self._nothing()
        if (group := self._layout.group("dp")) is not None:
            dist.all_reduce(self._all_2S, group=group)
        if (group := self._layout.group("pp")) is not None:
            source = dist.get_global_rank(group, self._layout.last_stage_rank)
            dist.broadcast(self._all_2S, source, group=group)

    def figures(self) -> dict[str, float]:
        """By name, of the sources that had a row. Waits for the device."""
        loss_S, num_S = self._all_2S.tolist()
        found = zip(self._names, loss_S, num_S, strict=True)
        return {name: loss / num for name, loss, num in found if num}
