"""Gradients of features, added up from the gradients of the logits block by block."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from mmtrain.collectives import scatter_row_sums
from mmtrain.losses._blocks import Block


@dataclass(frozen=True, kw_only=True)
class FeatureGradients:
    """What the blocks have added so far; None where no gradient is wanted."""

    image_BE: Tensor | None
    """Of this rank's images, still without the logits' multiplier."""
    text_AE: Tensor | None
    """Of the texts of all ranks, from this rank's images alone."""

    @classmethod
    def zeros(cls, image_BE: Tensor | None, text_AE: Tensor | None) -> "FeatureGradients":
        """Nothing yet, for the features that want a gradient."""
        return cls(
            image_BE=None if image_BE is None else torch.zeros_like(image_BE),
            text_AE=None if text_AE is None else torch.zeros_like(text_AE),
        )

    @property
    def wanted(self) -> bool:
        """Whether a block has anything to add."""
        return self.image_BE is not None or self.text_AE is not None

    def add_(self, weight_XY: Tensor, block: Block, *, scaled_XE: Tensor, text_YE: Tensor) -> None:
        """Adds a block, in place.

        Args:
            weight_XY: gradients of its logits.
            block: where it lies.
            scaled_XE: its images times the multiplier.
            text_YE: its texts.
        """
        if self.image_BE is not None:
            self.image_BE[block.rows].addmm_(weight_XY, text_YE)
        if self.text_AE is not None:
            self.text_AE[block.columns].addmm_(weight_XY.T, scaled_XE)

    def of_scale(self, image_BE: Tensor, *, factor: Tensor | float) -> Tensor:
        """Gradient of the multiplier, 0-dim, times `factor`; before `of_images`."""
        assert self.image_BE is not None
        return (self.image_BE * image_BE).sum() * factor

    def of_images(self, factor: Tensor | float) -> Tensor:
        """Gradient of the images times `factor`, in place."""
        assert self.image_BE is not None
        return self.image_BE.mul_(factor)

    def of_texts(self, factor: Tensor | float, *, group: ProcessGroup | None) -> Tensor | None:
        """Gradient of this rank's texts from all ranks' images, times `factor`, if wanted."""
        if self.text_AE is None:
            return None
        return scatter_row_sums(self.text_AE, group=group).mul_(factor)


class FinishedInForward(torch.autograd.Function):
    """A loss whose forward saves the gradients of its first inputs; backward only scales them."""

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad_loss,) = grad_outputs
        grads = [None if g is None else g * grad_loss for g in ctx.saved_tensors]
        return *grads, *[None] * (len(ctx.needs_input_grad) - len(grads))
