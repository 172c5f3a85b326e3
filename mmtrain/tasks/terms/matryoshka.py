"""The matryoshka term: features that may be cut short. Kusupati et al. 2022, arXiv:2205.13147."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from mmtrain.data.batch import ImageTextBatch
from mmtrain.errors import UsageError
from mmtrain.nn import unit_norm
from mmtrain.tasks.terms.contrastive import ContrastiveTerm
from mmtrain.tasks.terms.term import BatchTerm, Comparison, Found, Outputs, Rows


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig:
    """The contrastive loss also on leading slices of the features, which then serve by themselves:
    an index of them is smaller."""

    kind: Literal["matryoshka"] = "matryoshka"
    """Names the term."""
    weight: float = 1.0
    """What the loss of each slice counts."""
    dims: tuple[int, ...]
    """Lengths of the slices, below model.embed_dim; each is brought to unit norm anew."""

    wants_texts: ClassVar[bool] = False
    """Whether it reads the captions themselves."""
    teacher: ClassVar[None] = None
    """It learns from no model."""
    features: ClassVar[None] = None
    """Nor from what one made."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight = {self.weight} must be positive; or leave the term out")
        if not self.dims or min(self.dims) < 1 or len(set(self.dims)) < len(self.dims):
            raise ValueError(f"dims = {list(self.dims)} must be different lengths of at least 1")

    def comparisons(
        self, embed_dim: int, *, teacher_width: int | None = None
    ) -> tuple[Comparison, ...]:
        """One of each slice."""
        return tuple(Comparison(width=dim, copied=True) for dim in self.dims)

    def build(self, found: Found) -> "MatryoshkaTerm":
        """The term.

        Raises:
            UsageError: a slice is no part of the features.
        """
        if max(self.dims) >= found.embed_dim:
            raise UsageError(
                f"loss.terms: matryoshka: dims = {list(self.dims)} must be below model.embed_dim = "
                f"{found.embed_dim}, whose loss is there anyway"
            )
        return MatryoshkaTerm(self, found.contrastive)


class MatryoshkaTerm(BatchTerm):
    """sum over m of the contrastive loss of the first m features (Eq. 1, with equal weights).

    Args:
        config: the slices.
        contrastive: whose kind, scale, bias and labels it shares.
    """

    kind = "matryoshka"

    def __init__(self, config: MatryoshkaConfig, contrastive: ContrastiveTerm) -> None:
        self.dims, self.weight, self.contrastive = config.dims, config.weight, contrastive

    def loss(self, outputs: Outputs, batch: ImageTextBatch, rows: Rows) -> Tensor:
        losses = [
            self.contrastive.of(
                unit_norm(outputs["image"][:, :dim]), unit_norm(outputs["text"][:, :dim]), batch
            )
            for dim in self.dims
        ]
        return sum(losses[1:], start=losses[0])
