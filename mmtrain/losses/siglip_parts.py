"""The pairwise sigmoid loss of a batch whose images come in parts."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from mmtrain.losses._arguments import as_scalar
from mmtrain.losses._blocks import Positives, pair
from mmtrain.losses._sigmoid_sums import SigmoidSums

Differentiable = Literal["image", "text", "logit_scale", "logit_bias"]
"""What the loss has a gradient of."""


@dataclass(frozen=True, kw_only=True)
class SiglipGradients:
    """What a batch's loss is, and its gradients but those of the images."""

    loss: Tensor
    """0-dim; mean over the global batch, the same on every rank, or this rank's share of it."""
    text_BE: Tensor | None
    """Gradient of this rank's texts; of anything frozen: None."""
    logit_scale: Tensor | None
    """Gradient, 0-dim, of the multiplier."""
    logit_bias: Tensor | None
    """Gradient, 0-dim."""


class SiglipByParts:
    """`siglip_loss` with all texts at once and the images part by part.

    A pair's gradient needs no other pair: once the texts are known, each part of the images has its
    gradient in the pass that makes its features. So a step of many microbatches runs the image
    tower once, not once for the features and once for their gradient, and is exact all the same.

    Give the texts, `add` every image of this rank in parts of any size and order, and `finish`.
    The ranks communicate when the texts are given and at the end, whatever the parts; so they need
    not cut alike. Nothing is recorded for autograd: the gradients are here, scaled as those of
    `siglip_loss`, so that their **mean** over the group is the gradient of the global mean. They
    are fp32, or fp64 for fp64 texts; a loss scale belongs on them before anything narrows them.

    Args:
        text_BE: features of all of this rank's texts.
        logit_scale, logit_bias: as `siglip_loss` has them, and so all that is not named here.
        frozen: what wants no gradient, which is then not computed; alike on all ranks.

    Raises:
        ValueError: as `siglip_loss`.
    """

    @torch.no_grad()
    def __init__(
        self,
        text_BE: Tensor,
        *,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float,
        group: ProcessGroup | None = None,
        labels_B: Tensor | None = None,
        positives: Positives = "attract",
        valid_B: Tensor | None = None,
        equal_rows: bool = False,
        sum_loss: bool = True,
        frozen: Collection[Differentiable] = (),
        row_loss_B: Tensor | None = None,
    ) -> None:
        self._pairing, (text_AE,) = pair(
            {"text_BE": text_BE},
            group=group,
            labels_B=labels_B,
            positives=positives,
            valid_B=valid_B,
            equal_rows=equal_rows,
        )
        self._dim = text_BE.shape[1]
        self._seen = bytearray(self._pairing.num_rows)
        self._finished = False
        self._sum_loss = sum_loss
        self._sums = SigmoidSums(
            text_AE,
            scale=as_scalar(logit_scale, name="logit_scale", like=text_AE),
            bias=as_scalar(logit_bias, name="logit_bias", like=text_AE),
            pairing=self._pairing,
            need_text="text" not in frozen,
            need_scale="logit_scale" not in frozen,
            need_bias="logit_bias" not in frozen,
        )
        self._need_image = "image" not in frozen
        self._told_B = row_loss_B

    @torch.no_grad()
    def add(self, image_XE: Tensor, rows: slice) -> Tensor | None:
        """Gradient [X, E] of the loss with respect to these images; frozen ones have none.

        Args:
            image_XE: features of a part of this rank's images.
            rows: which of this rank's rows they are, one after the other.

        Raises:
            ValueError: they are not as many as the rows or not as wide as the texts, they are fp64
                beside narrower texts, or one of the rows has been here before.
        """
        rows = self._claim(image_XE, rows)
        part = self._pairing.part(rows)
        return self._sums.add(
            part.real(image_XE),
            pairing=part,
            need_image=self._need_image,
            told_X=None if self._told_B is None else self._told_B[rows],
        )

    @torch.no_grad()
    def finish(self) -> SiglipGradients:
        """The loss, and the gradients of the texts, the scale and the bias.

        Raises:
            ValueError: an image is missing, or this has been called before.
        """
        if missing := self._seen.count(0):
            raise ValueError(f"{missing} of {len(self._seen)} rows have not been added")
        if self._finished:
            raise ValueError("finish has been called before")
        self._finished = True
        loss, text_grad_BE, scale_grad, bias_grad = self._sums.finish(sum_loss=self._sum_loss)
        return SiglipGradients(
            loss=loss, text_BE=text_grad_BE, logit_scale=scale_grad, logit_bias=bias_grad
        )

    def _claim(self, image_XE: Tensor, rows: slice) -> slice:
        """Start and stop of these rows, which from now on have been here."""
        start, stop, step = rows.indices(len(self._seen))
        wanted = (len(range(start, stop, step)), self._dim)
        if tuple(image_XE.shape) != wanted or 0 in wanted or step != 1:
            raise ValueError(
                f"image_XE {tuple(image_XE.shape)} does not fit {rows} of text_BE "
                f"({len(self._seen)}, {self._dim}); give consecutive rows, one image each"
            )
        dtype = self._pairing.dtype
        if torch.promote_types(image_XE.dtype, dtype) != dtype or not image_XE.is_floating_point():
            raise ValueError(f"image_XE is {image_XE.dtype}; give floats, no wider than {dtype}")
        rows = slice(start, stop)
        if any(self._seen[rows]):
            raise ValueError(f"some of rows {start} to {stop - 1} have been added before")
        self._seen[rows] = bytes([1]) * (stop - start)
        return rows
