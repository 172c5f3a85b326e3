"""From token features to one feature per sample."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmtrain.nn.attention import Mask, attend
from mmtrain.nn.feed_forward import Activation, FeedForward

TokenPool = Literal["first", "last", "mean", "end"]


def pool_tokens(
    x_BTD: Tensor, kind: TokenPool, *, length_B: Tensor | None = None, skip: int = 0
) -> Tensor:
    """[B, T, D] -> [B, D].

    Args:
        x_BTD: token features.
        kind: `first` token, `last` token of the array, `end` token of each row, or the `mean`.
        length_B: tokens of each row; `end` needs it, `mean` leaves out what lies behind it.
        skip: leading tokens (class token, registers) that `mean` leaves out.

    Raises:
        ValueError: the kind is unknown, or `end` has no lengths.
    """
    if kind == "first":
        return x_BTD[:, 0]
    if kind == "last":
        return x_BTD[:, -1]
    if kind == "end":
        if length_B is None:
            raise ValueError('pool = "end" needs the length of each text')
        index_B1D = (length_B - 1)[:, None, None].expand(-1, 1, x_BTD.size(-1))
        return x_BTD.gather(1, index_B1D).squeeze(1)
    if kind == "mean":
        if length_B is None:
            return x_BTD[:, skip:].mean(1)
        position_T = torch.arange(x_BTD.size(1), device=x_BTD.device)
        counted_BT = (position_T >= skip) & (position_T < length_B[:, None])
        weight_BT = counted_BT.to(x_BTD.dtype) / counted_BT.sum(1, keepdim=True)
        return torch.einsum("btd,bt->bd", x_BTD, weight_BT)
    raise ValueError(f'pool = "{kind}" is unknown; use first, last, mean or end')


class AttentionPool(nn.Module):
    """Multi-head attention pooling (MAP): a learned query attends to all tokens, then an MLP.

    Zhai et al. 2022, arXiv:2106.04560, section 3.3 (from Set Transformer, arXiv:1810.00825,
    Eq. 11): pooled = y + mlp(norm(y)) with y = attention(query, tokens). Its maps have biases.

    Args:
        dim: features of tokens and result.
        num_heads: divides dim.
        ff_dim: width of the MLP.
        norm: over `dim` features, before the MLP.
        activation: of the MLP.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("query",)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        ff_dim: int,
        norm: nn.Module,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.query = nn.Parameter(torch.zeros(dim))
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm = norm
        self.feed_forward = FeedForward(dim, ff_dim, activation=activation)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, D]."""
        query_B1D = self.query.expand(x_BTD.size(0), 1, -1)
        q = self.q(query_B1D).unflatten(-1, (-1, self.head_dim))
        k = self.k(x_BTD).unflatten(-1, (-1, self.head_dim))
        v = self.v(x_BTD).unflatten(-1, (-1, self.head_dim))
        y_BD = self.o(attend(q, k, v, Mask()).flatten(-2))[:, 0]
        return y_BD + self.feed_forward(self.norm(y_BD))
