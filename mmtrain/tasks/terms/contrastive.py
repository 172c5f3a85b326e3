"""The contrastive term: an image and its text match, all others of the global batch do not."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmtrain.data.batch import ImageTextBatch
from mmtrain.losses import clip_loss, siglip_loss
from mmtrain.losses.config import LossConfig
from mmtrain.losses.siglip_parts import SiglipByParts
from mmtrain.parallel.mesh import Layout
from mmtrain.tasks.logits import Logits
from mmtrain.tasks.terms.term import BatchTerm, Outputs, Parts, Rows


class ContrastiveTerm(BatchTerm):
    """Softmax over the batch (Radford et al. 2021, arXiv:2103.00020) or pairwise sigmoid (Zhai et
    al. 2023, arXiv:2303.15343), as `config.kind` says.

    Args:
        config: the section [loss].
        logits: scale and bias.
        layout: the mesh; the batch is that of its data-parallel group.
        weight: what it counts.

    Raises:
        ValueError: sigmoid without a bias.
    """

    kind = "contrastive"

    def __init__(
        self, config: LossConfig, logits: Logits, *, layout: Layout, weight: float = 1.0
    ) -> None:
        self.weight = weight
        self.config, self.logits, self.layout = config, logits, layout
        self.row_loss_B: Tensor | None = None
        """Each row's part of the last step's loss, of batches that say which source a row is of."""
        if config.kind == "siglip" and logits.bias is None:
            raise ValueError(
                'loss.kind = "siglip" needs a learned bias; set model.init_logit_bias = -10.0 '
                f"and model.init_logit_scale = {torch.tensor(10.0).log():.4f}"
            )

    def loss(self, outputs: Outputs, batch: ImageTextBatch, rows: Rows) -> Tensor:
        told = self._told(outputs["text"], batch)
        return self.of(outputs["image"], outputs["text"], batch, **told)

    def of(self, image_BE: Tensor, text_BE: Tensor, batch: ImageTextBatch, **told: Any) -> Tensor:
        """This rank's share of the mean loss of unit-norm features over the global batch."""
        arguments = self._arguments(batch) | told
        if self.config.kind == "siglip":
            assert self.logits.bias is not None
            return siglip_loss(image_BE, text_BE, logit_bias=self.logits.bias, **arguments)
        return clip_loss(image_BE, text_BE, **arguments)

    def row_parts(self, outputs: Outputs, batch: ImageTextBatch) -> Tensor:
        text_BE = outputs["text"]
        loss_B = torch.zeros(text_BE.size(0), dtype=torch.float64, device=text_BE.device)
        self.of(outputs["image"], text_BE, batch, row_loss_B=loss_B)
        return loss_B / batch.valid_B.sum()

    @property
    def sums_over_images(self) -> bool:
        """The sigmoid of a pair needs no other pair."""
        return self.config.kind == "siglip"

    def begin(
        self,
        text_BE: Tensor,
        batch: ImageTextBatch,
        *,
        factor: Tensor | float,
        frozen: Sequence[str],
    ) -> Parts:
        arguments = self._arguments(batch) | {"frozen": {*frozen, *self.logits.frozen()}}
        arguments |= self._told(text_BE, batch)
        return _SigmoidParts(text_BE, self.logits, arguments, factor=factor)

    def _told(self, text_BE: Tensor, batch: ImageTextBatch) -> dict[str, Any]:
        if batch.source_B is None:
            return {}
        self.row_loss_B = torch.zeros(text_BE.size(0), dtype=torch.float64, device=text_BE.device)
        return {"row_loss_B": self.row_loss_B}

    def _arguments(self, batch: ImageTextBatch) -> dict[str, Any]:
        return {
            "logit_scale": self.logits.multiplier(),
            "group": self.layout.group("dp"),
            "labels_B": None if self.config.positives is None else batch.label_B,
            "positives": self.config.positives or "attract",
            "valid_B": batch.valid_B,
            "equal_rows": True,  # every rank has its share of the batch, padded
            "sum_loss": False,
        }


class _SigmoidParts(Parts):
    def __init__(
        self, text_BE: Tensor, logits: Logits, arguments: dict[str, Any], *, factor: Tensor | float
    ) -> None:
        self.logits, self.factor = logits, factor
        assert logits.bias is not None
        self.parts = SiglipByParts(text_BE, logit_bias=logits.bias, **arguments)

    def add(self, image_XE: Tensor, rows: slice) -> Tensor | None:
        return self._scaled(self.parts.add(image_XE, rows))

    def finish(self) -> tuple[Tensor, Tensor | None]:
        made = self.parts.finish()
        scale = made.logit_scale
        if scale is not None:  # the loss takes the multiplier; its logarithm is what trains
            scale = scale * self.logits.multiplier().detach()
        self.logits.add_gradients(scale=self._scaled(scale), bias=self._scaled(made.logit_bias))
        return made.loss, self._scaled(made.text_BE)

    def _scaled(self, gradient: Tensor | None) -> Tensor | None:
        return None if gradient is None else gradient * self.factor
