"""The text tower: token ids to one embedding."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmtrain.limits import check_choices, check_counts
from mmtrain.models.tower import check_encoder, reset_norms, sinusoidal_positions
from mmtrain.models.trunks.config import TransformersTrunk, check_beside_trunk
from mmtrain.models.trunks.text import TextTrunk
from mmtrain.nn import HostLengths, Transformer, TransformerConfig, pool_tokens, sent
from mmtrain.nn.rope import RopeTable, rope_1d

TRUNK_TEXT = {"positions": "none", "pool": "last"}
"""What a trunk fixes of a TextConfig."""
_BESIDE_TRUNK = ("vocab_size", "context_length", "end_token_id", "projection", "projection_bias")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A text encoder: causal with end-token pooling (OpenAI) or bidirectional (SigLIP)."""

    transformer: TransformerConfig
    """The blocks; transformer.mask says causal or full."""
    vocab_size: int = 49408
    """Entries of the token embedding."""
    context_length: int = 77
    """Longest text, tokens."""
    end_token_id: int | None = 49407
    """The id that ends a text. None: the largest id of a row ends it (OpenAI's first release)."""
    positions: Literal["learned", "sinusoidal", "rope", "none"] = "learned"
    """How tokens know their place."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    pool: Literal["end", "last", "first", "mean"] = "end"
    """Which token stands for the text: the end token, the array's last (SigLIP), first, or mean."""
    mask_padding: bool = True
    """With mask = "full": padding is not seen. SigLIP's checkpoints see theirs (False)."""
    projection: bool = True
    """A linear map to the shared embedding; False needs dim = embed_dim."""
    projection_bias: bool = False
    """Bias of that map (SigLIP has one)."""
    num_context: int = 0
    """Learned vectors in every text (CoOp, arXiv:2109.01134, Eq. 2); they count as tokens of
    context_length."""
    context_start: int = 1
    """Tokens before the learned vectors: 1 behind a start token, 0 where texts have none."""
    trunk: TransformersTrunk | None = None
    """Another network than our blocks, which gives one token; model.init brings it with all that it
    fixes. None: our blocks."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "vocab_size", most=1 << 30)
        check_counts(self, "context_length")
        if self.trunk is not None:
            check_beside_trunk(self, free=_BESIDE_TRUNK, **TRUNK_TEXT)
            return
        check_counts(self, "num_context", "context_start", least=0)
        rope = 2 if self.positions == "rope" else 1
        check_encoder(self.transformer, masks=("causal", "full"), rope=rope)
        if self.projection_bias and not self.projection:
            raise ValueError("projection_bias = true needs projection = true")
        if self.transformer.mask == "causal" and self.pool == "first":
            raise ValueError('pool = "first" sees only itself under a causal mask; use end')

    @property
    def max_ids(self) -> int:
        """Token ids of the longest text, which leave the learned vectors their places."""
        return self.context_length - self.num_context

    @property
    def cuts_padding(self) -> bool:
        """Whether padding behind a text's end cannot reach its embedding, so that a batch may be
        cut to its longest text exactly."""
        if self.pool == "last":
            return False
        return self.transformer.mask == "causal" or self.mask_padding


class TextEmbed(nn.Module):
    """Token ids to vectors with positions."""

    no_decay: ClassVar[tuple[str, ...]] = ("positional_embedding", "context")

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.transformer.dim
        drawn_VD = torch.empty(config.vocab_size, dim)
        # As Embedding does it, whose draw on the meta device imports torch._dynamo: seconds.
        if not drawn_VD.is_meta:
            drawn_VD.normal_()
        self.token = nn.Embedding.from_pretrained(drawn_VD, freeze=False)
        self.positional_embedding = (
            nn.Parameter(torch.empty(config.context_length, dim))
            if config.positions == "learned"
            else None
        )
        self.context = (
            nn.Parameter(torch.empty(config.num_context, dim)) if config.num_context else None
        )

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]; T grows by the learned vectors.

        Raises:
            ValueError: the texts are longer than context_length, or cut where padding counts.
        """
        num_learned = self.config.num_context
        num_tokens, limit = tokens_BT.size(1) + num_learned, self.config.context_length
        if num_tokens > limit:
            learned = f" ({num_learned} of them learned)" if num_learned else ""
            raise ValueError(
                f"texts of {num_tokens} tokens{learned} exceed context_length = {limit}"
            )
        if num_tokens < limit and not self.config.cuts_padding:
            raise ValueError(
                f"texts of {num_tokens} tokens must be padded to context_length = {limit}: "
                "padding reaches this tower's result"
            )
        x_BTD = self.token(tokens_BT)
        if self.context is not None:
            start = self.config.context_start
            learned_BnD = self.context.expand(x_BTD.size(0), -1, -1)
            x_BTD = torch.cat([x_BTD[:, :start], learned_BnD, x_BTD[:, start:]], dim=1)
        if self.positional_embedding is not None:
            return x_BTD + self.positional_embedding[:num_tokens]
        if self.config.positions == "sinusoidal":
            dim = self.config.transformer.dim
            return x_BTD + sinusoidal_positions(num_tokens, dim, like=self.token.weight)
        return x_BTD

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, see TextTower.init_weights; learned vectors come last there."""
        self.token.weight.normal_(0.0, 0.02, generator=generator)
        if self.positional_embedding is not None:
            self.positional_embedding.normal_(0.0, 0.01, generator=generator)


class TextHead(nn.Module):
    """Tokens to one embedding: norm, pool, projection."""

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        dim = config.transformer.dim
        self.norm = config.transformer.build_norm(dim) if config.trunk is None else nn.Identity()
        self.projection = (
            nn.Linear(dim, embed_dim, bias=config.projection_bias) if config.projection else None
        )

    def forward(self, x_BTD: Tensor, length_B: Tensor) -> Tensor:
        """[B, T, D] -> [B, E]. Norm acts per token, so it runs on the pooled one where it can."""
        if self.config.pool == "mean":
            lengths = length_B if self.config.cuts_padding else None
            x_BD = pool_tokens(self.norm(x_BTD), "mean", length_B=lengths)
        else:
            x_BD = self.norm(pool_tokens(x_BTD, self.config.pool, length_B=length_B))
        return x_BD if self.projection is None else self.projection(x_BD)


def text_length(tokens_BT: Tensor, end_token_id: int | None) -> Tensor:
    """Tokens of each text up to and with its end: the first end token, or where None is named the
    largest id; all tokens of a text that has none."""
    if end_token_id is None:
        return tokens_BT.argmax(1) + 1
    ends_BT = tokens_BT == end_token_id
    return torch.where(ends_BT.any(1), ends_BT.int().argmax(1) + 1, tokens_BT.size(1))


def build_text_embed(config: TextConfig) -> TextEmbed | TextTrunk:
    """What makes tokens of ids."""
    if config.trunk is None:
        return TextEmbed(config)
    return TextTrunk(config.trunk, dim=config.transformer.dim)


class TextTower(nn.Module):
    """embed -> transformer -> head. A pipeline stage holds None for what another stage has."""

    embed: TextEmbed | TextTrunk | None
    head: TextHead | None
    num_groups: int = 1
    """Groups of texts of like length that a whole tower takes one after another, each cut to its
    own longest text: less padding, the same embeddings."""

    def __init__(self, config: TextConfig, *, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.embed = build_text_embed(config)
        self.transformer: Transformer = Transformer(config.transformer)
        self.head = TextHead(config, embed_dim)

    def text_length(self, tokens_BT: Tensor) -> Tensor:
        """Tokens of each text up to and with its end token; all of them where it has none."""
        return text_length(tokens_BT, self.config.end_token_id)

    def rope_table(self, num_tokens: int, device: torch.device) -> RopeTable | None:
        """Rotary tables of the tokens."""
        if self.config.positions != "rope":
            return None
        head_size = self.config.transformer.head_size
        position_T = torch.arange(num_tokens, device=device)
        return rope_1d(position_T, head_size, theta=self.config.rope_theta)

    def without_context(self, x_BTD: Tensor) -> Tensor:
        """A headless tower's tokens without those of the learned vectors."""
        start, num_learned = self.config.context_start, self.config.num_context
        if not num_learned:
            return x_BTD
        return torch.cat([x_BTD[:, :start], x_BTD[:, start + num_learned :]], dim=1)

    def forward(
        self,
        x: Tensor,
        *,
        length_B: Tensor,
        keep_BL2: Tensor | None = None,
        host_lengths: HostLengths | None = None,
    ) -> Tensor:
        """Ids [B, T] (or tokens from the stage before) -> [B, E] (or tokens).

        `host_lengths` is `length_B` where groups need not wait for the device to know it.
        """
        if self.embed is not None:
            x = self.embed(x)
        # A text without a token: it sees, and is, its first padding, else its softmax is 0/0 and
        # the whole batch's gradient NaN.
        length_B = length_B.clamp(min=1) + self.config.num_context
        if self.num_groups == 1:
            return self._blocks_and_head(x, length_B, keep_BL2)
        known_B = length_B
        if host_lengths is not None:
            known_B = host_lengths.length_B.clamp(min=1) + self.config.num_context
        order_B = known_B.argsort(stable=True)
        groups = []
        for rows in order_B.chunk(self.num_groups):
            longest, rows = int(known_B[rows].max()), sent(rows, x.device)
            keep = None if keep_BL2 is None else keep_BL2[rows]
            groups.append(self._blocks_and_head(x[rows, :longest], length_B[rows], keep))
        return torch.cat(groups)[sent(order_B.argsort(), x.device)]

    def _blocks_and_head(self, x: Tensor, length_B: Tensor, keep_BL2: Tensor | None) -> Tensor:
        masks_padding = self.config.transformer.mask == "full" and self.config.cuts_padding
        x = self.transformer(
            x,
            mask=self.transformer.build_mask(
                x.size(1), device=x.device, key_length_B=length_B if masks_padding else None
            ),
            rope=self.rope_table(x.size(1), x.device),
            keep_BL2=keep_BL2,
        )
        return x if self.head is None else self.head(x, length_B)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights (w = dim): CLIP's table for text towers.

        | weight              | drawn from               |
        |---------------------|--------------------------|
        | token embedding     | N(.02)                   |
        | positions           | N(.01)                   |
        | learned vectors     | N(.02)                   |
        | projection, bias    | N(w^-.5), 0              |
        | norm                | identity                 |
        | blocks              | Transformer.init_weights |
        """
        assert self.embed is not None and self.head is not None, "a slice cannot be initialised"
        self.embed.init_weights(generator)
        self.transformer.init_weights(generator)
        reset_norms(self.head.norm)
        if self.head.projection is not None:
            std = self.config.transformer.dim**-0.5
            self.head.projection.weight.normal_(0.0, std, generator=generator)
            if self.head.projection.bias is not None:
                self.head.projection.bias.zero_()
        if isinstance(self.embed, TextEmbed) and self.embed.context is not None:
            self.embed.context.normal_(0.0, 0.02, generator=generator)
