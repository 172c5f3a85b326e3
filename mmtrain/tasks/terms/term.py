"""What an objective is a weighted sum of: terms that look at single rows, or at all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmtrain.parallel.mesh import Layout

if TYPE_CHECKING:
    from mmtrain.tasks.terms.contrastive import ContrastiveTerm

Outputs = dict[str, Tensor]
"""What the towers give, by name; first dim: rows."""
Rows = dict[str, Tensor]
"""Per-row tensors that every stage may read, by name."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a term of [[loss.terms]] is built beside."""

    name: str
    """Unlike that of every other term."""
    key: str
    """Its table in the recipe."""
    contrastive: "ContrastiveTerm"
    """The loss that it stands beside."""
    embed_dim: int
    """Width of the features."""
    layout: Layout
    """The mesh."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a batch term compares, for a plan of its memory: every image with every text."""

    width: int
    """Of the features."""
    blocks: int = 2
    """Blocks of logits at a time."""
    copied: bool = False
    """Whether the features are copies of the outputs, as slices brought to unit norm are."""
    teacher_width: int | None = None
    """Of a teacher's features, compared likewise; then all gradients are made in the forward."""


class Term:
    """One part of an objective.

    Attributes:
        kind: its name in recipes and logs.
        weight: what it counts.
    """

    kind: str
    weight: float = 1.0

    def rows(self, batch: Any) -> Rows:
        """Per-row tensors that it adds to a batch's, such as a teacher's outputs. Collective."""
        return {}

    def teachers(self) -> dict[str, tuple[str, str]]:
        """Models that it learns from and that no checkpoint holds, by their key in the recipe:
        path and fingerprint."""
        return {}


class RowTerm(Term):
    """A sum over rows of a function of each row's own outputs, divided by a count of the batch.

    Its gradient is known in the pass that makes the outputs, which may be forgotten there.
    """

    num_columns: int = 1
    """What it makes of a row: its loss, then figures for the log."""

    def columns(self, outputs: Outputs, rows: Rows) -> Tensor:
        """[R, num_columns]; 0 on rows that count nowhere."""
        raise NotImplementedError

    def count(self, batch: Any) -> Tensor:
        """What the sum of losses is divided by, of this rank's rows; 0-dim."""
        raise NotImplementedError

    def figures(self, sums: list[float], count: float) -> dict[str, float]:
        """What a log line says beside the loss, from the sums of the columns over the global batch
        and what they are divided by."""
        return {}


class BatchTerm(Term):
    """A function of the outputs of all rows of the global batch."""

    def loss(self, outputs: Outputs, batch: Any, rows: Rows) -> Tensor:
        """This rank's share of the global mean, whose sum over the data-parallel group that is,
        0-dim, without the weight; its gradients are scaled for averaging over the group."""
        raise NotImplementedError

    def row_parts(self, outputs: Outputs, batch: Any) -> Tensor | None:
        """Each row's part of the loss, [R] in fp64; None: it has none of its own."""
        return None

    @property
    def sums_over_images(self) -> bool:
        """Whether it is a sum over images of what each has to do with all texts: `begin` serves."""
        return False

    def begin(
        self, text_BE: Tensor, batch: Any, *, factor: Tensor | float, frozen: Sequence[str]
    ) -> "Parts":
        """Begin a pass that has all texts and takes the images in parts.

        Args:
            text_BE: detached.
            batch: this rank's rows.
            factor: of every gradient.
            frozen: outputs that want none.
        """
        raise NotImplementedError


class Parts:
    """A batch term in the course of a pass over parts of the images."""

    def add(self, image_XE: Tensor, rows: slice) -> Tensor | None:
        """Take the images of `rows` -> the gradient [X, E] of their features, if it is wanted."""
        raise NotImplementedError

    def finish(self) -> tuple[Tensor, Tensor | None]:
        """-> this rank's share of the loss and the gradient [B, E] of the texts, if it is wanted;
        parameters have theirs in `.grad`."""
        raise NotImplementedError


def packed(outputs: list[Tensor]) -> Tensor:
    """Outputs side by side, in a number format that holds each: [R, ...] -> [R, C]."""
    dtype = outputs[0].dtype
    for one in outputs[1:]:
        dtype = torch.promote_types(dtype, one.dtype)
    return torch.cat([one.to(dtype) for one in outputs], dim=1)
