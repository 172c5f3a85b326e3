"""Both ends of a decoder, where it meets its vocabulary: token vectors and logits."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.models.decoder_config import DecoderConfig


class TokenEmbedding(nn.Module):
    """Ids to vectors; its matrix gives the logits too where the head is tied."""

    weights_meet: ClassVar[bool] = True

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        dim = config.transformer.dim
        self.weight = nn.Parameter(torch.empty(config.vocab_size, dim))
        self.scale = dim**0.5 if config.embed_scale else None

    def matrix(self) -> Tensor:
        """What a tied head multiplies with, [V, D]."""
        return self.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Ids [B, T] -> vectors [B, T, D], scaled."""
        x_BTD = F.embedding(tokens_BT, self.weight)
        if self.scale is None:
            return x_BTD
        return x_BTD * torch.full((), self.scale, dtype=x_BTD.dtype, device=x_BTD.device)


class DecoderEmbed(nn.Module):
    """What enters the blocks: token vectors with learned positions."""

    no_decay: ClassVar[tuple[str, ...]] = ("positional_embedding",)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.token = TokenEmbedding(config)
        shape = (config.context_length, config.transformer.dim)
        self.positional_embedding = (
            nn.Parameter(torch.empty(shape)) if config.positions == "learned" else None
        )

    def forward(self, x: Tensor, position_BT: Tensor) -> Tensor:
        """Ids [B, T] or vectors [B, T, D] that stand for tokens, positions [B, T] or [T] ->
        [B, T, D]."""
        x_BTD = x if x.is_floating_point() else self.token(x)
        if self.positional_embedding is None:
            return x_BTD
        return x_BTD + F.embedding(position_BT, self.positional_embedding)


class TiedLogits(nn.Module):
    """Logits from the token embedding's matrix; a module, so that a vocabulary can be sharded."""

    def forward(self, x_BTD: Tensor, weight_VD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V]."""
        return F.linear(x_BTD, weight_VD)


class DecoderHead(nn.Module):
    """Norm, then logits: by a matrix of its own, or by the token embedding's."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        blocks = config.transformer
        self.norm = blocks.build_norm(blocks.dim) if config.final_norm else None
        self.projection = (
            None if config.tied_head else nn.Linear(blocks.dim, config.vocab_size, bias=False)
        )
        self.tied = TiedLogits() if config.tied_head else None
        self.cap = config.logit_cap

    def forward(self, x_BTD: Tensor, tied_VD: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, V]; `tied_VD` is the token embedding's matrix where it is tied.

        Raises:
            ValueError: it is tied and there is none.
        """
        x_BTD = x_BTD if self.norm is None else self.norm(x_BTD)
        if self.projection is not None:
            return self._capped(self.projection(x_BTD))
        if self.tied is None or tied_VD is None:
            raise ValueError("the head is tied to an embedding that another stage holds")
        return self._capped(self.tied(x_BTD, tied_VD))

    def _capped(self, logits_BTV: Tensor) -> Tensor:
        if self.cap is None:
            return logits_BTV
        return self.cap * torch.tanh(logits_BTV / self.cap)
