"""What the losses of a batch share: who matches whom, and the walk over blocks.

The B x A logits of this rank's images against the texts of all ranks are visited block by block;
`Pairing` answers, for one block, which entries are positives and which do not exist.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from mmtrain.collectives import gather_together, rank_and_size, require_equal
from mmtrain.losses._arguments import check_rows, check_shapes
from mmtrain.nn.products import tf32_products

Positives = Literal["attract", "ignore"]

# Stands for "not a pair": its exponential and its sigmoid are exactly 0, in fp32 and fp64, and
# unlike -inf it never makes inf - inf, even where a whole row of a block is left out.
EXCLUDED = -1e30

# Rows and elements of a block. On a CPU two fp32 blocks (8 MiB) stay in the last-level cache, where
# an element-wise pass costs 0.2 ns per element instead of 0.5 (measured, one core), and a product
# of 1024 x 1024 x 512 is already as fast as a larger one. A GPU wants fewer, larger kernels.
_BLOCK_ROWS = {"cpu": 1024}
_BLOCK_ELEMENTS = {"cpu": 1024 * 1024}
_DEFAULT_ROWS = 4096
_DEFAULT_ELEMENTS = 4096 * 8192


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of the logits: `rows` of this rank's images, `columns` of all texts."""

    rows: slice
    columns: slice
    shift: int
    """Where the diagonal of the global batch runs: at column - row = shift within the block."""

    def own(self, x_XY: Tensor) -> Tensor:
        """View of the entries where an image meets its own text; empty in most blocks."""
        return x_XY.diagonal(self.shift)

    @property
    def own_rows(self) -> slice:
        """This rank's rows that `own` belongs to."""
        num_rows, num_columns = (s.stop - s.start for s in (self.rows, self.columns))
        first = max(0, -self.shift)
        num = max(0, min(num_rows - first, num_columns - max(0, self.shift)))
        return slice(self.rows.start + first, self.rows.start + first + num)


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """This rank's B images against the A texts of all ranks: who matches, who counts."""

    num_rows: int
    num_columns: int
    offset: int
    """Row b's own text is column offset + b."""
    group: ProcessGroup | None
    ranks: int
    attract: bool
    """Whether equal identities are positives; otherwise they are no negatives."""
    identity_A: Tensor | None
    """int64; rows and columns of equal identity match. None: only an image and its own text."""
    valid_A: Tensor | None
    """bool; false where a row is padding. None: all are real."""
    padding_A: Tensor | None
    """Added to the logits of a row or column: 0, or `EXCLUDED` where it is padding."""
    num_valid: Tensor | float
    """Real pairs of the global batch, at least 1."""
    dtype: torch.dtype
    """Of all that is computed: fp32, or fp64 where a feature is."""
    device: torch.device
    block_rows: int
    block_columns: int

    def part(self, rows: slice) -> "Pairing":
        """The pairing of these of this rank's rows alone, against all columns as before."""
        num_rows = rows.stop - rows.start
        block_rows, block_columns = block_shape(num_rows, self.num_columns, self.device)
        return replace(
            self,
            num_rows=num_rows,
            offset=self.offset + rows.start,
            block_rows=block_rows,
            block_columns=block_columns,
        )

    def real(self, x_BE: Tensor) -> Tensor:
        """This rank's features in the computing dtype, with zeros in place of padding.

        The gradient of those zeros is zero, so that not even a NaN there reaches a real row.
        """
        return _real(x_BE, None if self.valid_A is None else self.local(self.valid_A), self.dtype)

    def row_blocks(self) -> Iterator[slice]:
        """Slices of this rank's rows."""
        for start in range(0, self.num_rows, self.block_rows):
            yield slice(start, min(start + self.block_rows, self.num_rows))

    def blocks(self, rows: slice) -> Iterator[Block]:
        """All blocks of these rows, from left to right."""
        for start in range(0, self.num_columns, self.block_columns):
            columns = slice(start, min(start + self.block_columns, self.num_columns))
            yield Block(rows=rows, columns=columns, shift=self.offset + rows.start - start)

    def buffer(self, like: Tensor) -> Tensor:
        """Memory for one block, reused by every one of them."""
        return like.new_empty(self.block_rows * self.block_columns)

    def local(self, x_A: Tensor) -> Tensor:
        """This rank's part of a value per pair."""
        return x_A[self.offset : self.offset + self.num_rows]

    def same(self, block: Block) -> Tensor:
        """bool [X, Y]: the block's pairs of equal identity, own pairs among them."""
        assert self.identity_A is not None
        rows_X = self.local(self.identity_A)[block.rows]
        return rows_X[:, None] == self.identity_A[block.columns]

    def exclude_(self, logits_XY: Tensor, block: Block) -> None:
        """Takes out of a block, in place, what is neither positive nor negative."""
        if self.padding_A is not None:
            logits_XY += self.local(self.padding_A)[block.rows, None]
            logits_XY += self.padding_A[block.columns]
        if self.identity_A is not None and not self.attract:
            same_XY = self.same(block)
            block.own(same_XY).fill_(False)
            logits_XY.masked_fill_(same_XY, EXCLUDED)


@contextmanager
def whole_products(device: torch.device) -> Iterator[None]:
    """Within the context products have all the bits of what is multiplied, under any autocast and
    where TF32 is allowed."""
    with torch.autocast(device.type, enabled=False), tf32_products(False):
        yield


def product(buffer: Tensor, rows_XE: Tensor, columns_YE: Tensor) -> Tensor:
    """rows_XE @ columns_YE.T, written into the front of `buffer`."""
    shape = rows_XE.shape[0], columns_YE.shape[0]
    out_XY = buffer[: shape[0] * shape[1]].view(shape)
    return torch.mm(rows_XE, columns_YE.T, out=out_XY)


def block_shape(num_rows: int, num_columns: int, device: torch.device) -> tuple[int, int]:
    """Rows and columns of a block: a function of the shapes and the kind of device alone.

    Never of free memory, so that a run repeats bit for bit wherever it is started again.
    """
    rows = min(num_rows, _BLOCK_ROWS.get(device.type, _DEFAULT_ROWS))
    elements = _BLOCK_ELEMENTS.get(device.type, _DEFAULT_ELEMENTS)
    return rows, min(num_columns, max(1, elements // rows))


def pair(
    features: dict[str, Tensor],
    *,
    teacher: dict[str, Tensor] | None = None,
    group: ProcessGroup | None,
    labels_B: Tensor | None = None,
    positives: str = "attract",
    valid_B: Tensor | None,
    equal_rows: bool = False,
) -> tuple[Pairing, list[Tensor]]:
    """Checks a loss's arguments, says who matches whom, and gathers the texts, all that ranks need
    of each other in one collective.

    Args:
        features: [B, E] of this rank's pairs by the name of the argument, all of one shape.
        teacher: another model's of the same pairs, of a width of their own.
        group, labels_B, positives, valid_B, equal_rows: as the losses have them.

    Returns:
        The pairing, and the texts [A, E] of all ranks as `Pairing.real` has them, without
        gradients: the features', then the teacher's.

    Raises:
        ValueError: shapes, dtypes or `positives` are off, or the ranks hold unequal shapes.
    """
    teacher = teacher or {}
    shape = check_shapes(features, teacher)
    num_rows, device = shape["rows"], next(iter(features.values())).device
    check_rows(num_rows, labels_B=labels_B, positives=positives, valid_B=valid_B)
    given = {"labels_B given": int(labels_B is not None), "valid_B given": int(valid_B is not None)}
    remedy = "pad the last batch to the others' rows and mark the padding in valid_B"
    if not equal_rows:
        require_equal(shape | given, group=group, device=device, remedy=remedy)

    double = any(x.dtype == torch.float64 for x in (*features.values(), *teacher.values()))
    dtype = torch.float64 if double else torch.float32
    rank, ranks = rank_and_size(group)
    num_columns = ranks * num_rows
    texts = [x for name, x in (features | teacher).items() if name.endswith("text_BE")]
    said = {"valid": valid_B, "labels": labels_B}
    said = {name: x for name, x in said.items() if x is not None}
    real = [_real(x.detach(), valid_B, dtype) for x in texts]
    gathered = gather_together([*real, *said.values()], group=group)
    all_said = dict(zip(said, gathered[len(real) :], strict=True))
    padding_A, num_valid, valid_A = None, float(num_columns), all_said.get("valid")
    if valid_A is not None:
        padding_A = torch.zeros(num_columns, dtype=dtype, device=device)
        padding_A.masked_fill_(~valid_A, EXCLUDED)
        num_valid = valid_A.sum().clamp_(min=1).to(dtype)
    identity_A = None
    if labels_B is not None:
        identity_A = _identities(all_said["labels"], valid_A)
    block_rows, block_columns = block_shape(num_rows, num_columns, device)
    pairing = Pairing(
        num_rows=num_rows,
        num_columns=num_columns,
        offset=rank * num_rows,
        group=group,
        ranks=ranks,
        attract=positives == "attract",
        identity_A=identity_A,
        valid_A=valid_A,
        padding_A=padding_A,
        num_valid=num_valid,
        dtype=dtype,
        device=device,
        block_rows=block_rows,
        block_columns=block_columns,
    )
    return pairing, gathered[: len(real)]


def _real(x_BE: Tensor, valid_B: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Features in the computing dtype, with zeros in place of padding."""
    x_BE = x_BE.to(dtype)
    return x_BE if valid_B is None else x_BE.masked_fill(~valid_B[:, None], 0)


def _identities(label_A: Tensor, valid_A: Tensor | None) -> Tensor:
    """The labels, with a number of its own below 0 for each row that matches nothing else."""
    unique_A = torch.arange(-1, -1 - label_A.shape[0], -1, device=label_A.device)
    counts_A = label_A >= 0 if valid_A is None else (label_A >= 0) & valid_A
    return torch.where(counts_A, label_A, unique_A)
