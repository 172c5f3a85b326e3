"""A causal decoder: token ids, or vectors that stand for them, to the next token's logits.

The shapes of GPT-1, GPT-2, GPT-3, Llama and Gemma are configs of it (interop/hf_decoder.py reads
their checkpoints). A picture's features join a text as vectors:

    text_BTD = decoder.embed.token(tokens_BT)             # scaled as the model's own tokens are
    logits_BTV = decoder(torch.cat([image_BTD, text_BTD], 1), prefix_length_B=image_length_B)
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmtrain.models.decoder_config import DecoderConfig
from mmtrain.models.model import Cuts, Model, Stack, Stage, Tower
from mmtrain.models.slices import slice_tower
from mmtrain.models.tower import reset_norms
from mmtrain.models.vocabulary import DecoderEmbed, DecoderHead
from mmtrain.nn import DecoderCache, Mask, Transformer, TransformerConfig
from mmtrain.nn.masks import causal_allowed, segment_positions, window_allowed
from mmtrain.nn.rope import RopeTable, rope_1d


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the tokens of a call stand and what they see."""

    position_BT: Tensor
    mask: Mask
    local_mask: Mask | None
    ropes: "_Ropes"


_Ropes = tuple[RopeTable | None, RopeTable | None]
"""Of the layers that see all, and of the local ones where theirs is another."""


class Decoder(Model):
    """embed -> transformer -> head. A pipeline stage holds None for what another stage has."""

    tensor_plan: ClassVar[str] = "vocabulary"

    embed: DecoderEmbed | None
    head: DecoderHead | None

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = DecoderEmbed(config)
        self.transformer: Transformer = Transformer(config.transformer)
        self.head = DecoderHead(config)

    def towers(self) -> dict[str, Tower]:
        """None: it encodes nothing."""
        return {}

    def stage(self) -> "DecoderStage":
        """The decoder as the one stage of a schedule."""
        return DecoderStage(self)

    def build_cache(self, batch_size: int, max_length: int) -> DecoderCache:
        """An empty cache of `max_length` slots in the weights' dtype and place."""
        device = next(self.parameters()).device
        cache = DecoderCache(
            self.transformer.build_caches(batch_size, max_length),
            batch_size=batch_size,
            max_length=max_length,
            device=device,
        )
        cache.ropes = self._rope_tables(torch.arange(max_length, device=device))
        return cache

    def forward(
        self,
        x: Tensor,
        *,
        real_BT: Tensor | None = None,
        prefix_length_B: Tensor | None = None,
        segment_BT: Tensor | None = None,
        position_BT: Tensor | None = None,
        mask: Mask | None = None,
        cache: DecoderCache | None = None,
        keep_BL2: Tensor | None = None,
        num_logits: int | None = None,
        at_M: Tensor | None = None,
        tied_VD: Tensor | None = None,
    ) -> Tensor:
        """Next-token logits [B, T, V]; tokens [B, T, D] where a later stage has the head.

        With a cache, tokens follow on what their row holds: causally, unless `prefix_length_B`,
        `segment_BT` or `mask` says more.

        Args:
            x: ids [B, T], or vectors [B, T, D]: images' among those of `embed.token`, or what the
                stage before handed on.
            real_BT: False for padding, left or right: it changes nothing that another token gets.
                None: all are real.
            prefix_length_B: real tokens of the bidirectional prefix (mask kind `prefix`).
            segment_BT: segment ids (mask kind `block`) of these tokens, see masks.block_allowed.
            position_BT: positions, from 0. None: each row counts its real tokens; under `block`
                every question goes on where the context ends.
            mask: over these queries and all keys, instead of the configured kind's.
            cache: from build_cache; these tokens are appended to it.
            keep_BL2: factors of stochastic depth from depth_keep.
            num_logits: only those of the last tokens. None: of all.
            at_M: only those of these tokens, numbered over all rows, as one row [1, M, V].
            tied_VD: the tied head's matrix, from the stage that has the embedding.

        Raises:
            ValueError: more tokens than context_length, or the mask's kind needs what is missing.
        """
        limit, longest = self.config.context_length, x.size(1)
        if mask is not None and mask.lengths is not None:
            longest = max(mask.lengths)
        if cache is None and segment_BT is None and longest > limit:
            raise ValueError(f"a text of {longest} tokens exceeds context_length = {limit}")
        place = self._place(
            x,
            real_BT=real_BT,
            prefix_length_B=prefix_length_B,
            segment_BT=segment_BT,
            position_BT=position_BT,
            mask=mask,
            cache=cache,
        )
        x = self.transformer(
            x if self.embed is None else self.embed(x, place.position_BT),
            mask=place.mask,
            local_mask=place.local_mask,
            rope=place.ropes[0],
            local_rope=place.ropes[1],
            keep_BL2=keep_BL2,
            caches=None if cache is None else cache.layers,
        )
        if self.head is None:
            return x
        if self.config.tied_head and self.embed is not None:
            tied_VD = self.embed.token.matrix()
        if at_M is not None:
            x = x.flatten(0, 1).index_select(0, at_M)[None]
        return self.head(x if num_logits is None else x[:, -num_logits:], tied_VD)

    def matrix_to_hand_on(self, x: Tensor) -> Tensor | None:
        """The tied head's matrix for the stage that has the head; None where nobody needs it.

        It hangs on `x`, what this stage was given, by a zero: schedules that compute the gradients
        of inputs and of weights apart find weights only through what the inputs lead to.
        """
        if not self.config.tied_head or self.embed is None or self.head is not None:
            return None
        return self.embed.token.matrix() + 0 * x.flatten()[0]

    def _rope_tables(self, position_BT: Tensor) -> _Ropes:
        config = self.config
        if config.positions != "rope":
            return None, None
        head_size, local = config.transformer.head_size, config.local_rope_theta
        return (
            rope_1d(position_BT, head_size, theta=config.rope_theta, scaling=config.rope_scaling),
            None if local is None else rope_1d(position_BT, head_size, theta=local),
        )

    def _place(
        self,
        x: Tensor,
        *,
        real_BT: Tensor | None,
        prefix_length_B: Tensor | None,
        segment_BT: Tensor | None,
        position_BT: Tensor | None,
        mask: Mask | None,
        cache: DecoderCache | None,
    ) -> _Place:
        """Positions and masks of a call; takes the cache's slots."""
        num_tokens, cached = x.size(1), 0 if cache is None else cache.num_slots
        # What counts on within the slots has a table; a caller's own positions may lie beyond it.
        tables = cache.ropes if cache is not None and position_BT is None else None
        if segment_BT is not None:
            if cache is not None:
                segment_BT = cache.append_segments(segment_BT)
            if position_BT is None:
                position_BT = segment_positions(segment_BT)[:, -num_tokens:]
        if cache is None:
            position_BT = _positions(x, real_BT) if position_BT is None else position_BT
            real_BS, key_position_BS = real_BT, position_BT
        else:
            position_BT = cache.append(num_tokens, real_BT=real_BT, position_BT=position_BT)
            key_position_BS = cache.positions
            real_BS = key_position_BS >= 0 if cache.is_padded else None
        if mask is None:
            if prefix_length_B is not None and real_BT is not None:
                prefix_length_B = prefix_length_B + (real_BT.cumsum(1) == 0).sum(1)
            follows = cached > 0 and prefix_length_B is None and segment_BT is None
            mask = self.transformer.build_mask(
                num_tokens,
                device=x.device,
                kind="causal" if follows else None,
                real_BS=real_BS,
                prefix_length_B=prefix_length_B,
                segment_BT=segment_BT,
                num_cached=cached,
            )
        return _Place(
            position_BT=position_BT,
            mask=mask,
            local_mask=self._local(mask, position_BT, key_position_BS),
            ropes=self._rope_tables(position_BT)
            if tables is None
            else (_at(tables[0], position_BT), _at(tables[1], position_BT)),
        )

    def _local(self, mask: Mask, position_BT: Tensor, key_position_BS: Tensor) -> Mask | None:
        """The mask of the local layers: what `mask` allows within the window."""
        window = self.config.transformer.local_window
        if window is None:
            return None
        if mask.lengths is not None:
            return replace(mask, window=window)
        if position_BT.ndim == 1:
            position_BT = key_position_BS = position_BT[None]
        near = window_allowed(position_BT, key_position_BS.clamp(min=0), window)
        allowed = mask.allowed
        if mask.causal:
            num_tokens = position_BT.size(1)
            allowed = causal_allowed(num_tokens, num_tokens, device=position_BT.device)
        return Mask(allowed=near if allowed is None else allowed & near)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> "Decoder":
        """Draw initial weights (w = dim): GPT-2's table around the blocks' own.

        | weight          | drawn from               |
        |-----------------|--------------------------|
        | token embedding | N(.02)                   |
        | positions       | N(.01)                   |
        | head            | N(.02)                   |
        | norm            | identity                 |
        | blocks          | Transformer.init_weights |
        """
        assert self.embed is not None and self.head is not None, "a slice cannot be initialised"
        self.embed.token.weight.normal_(0.0, 0.02, generator=generator)
        if self.embed.positional_embedding is not None:
            self.embed.positional_embedding.normal_(0.0, 0.01, generator=generator)
        self.transformer.init_weights(generator)
        reset_norms(self.head.norm)
        if self.head.projection is not None:
            self.head.projection.weight.normal_(0.0, 0.02, generator=generator)
        return self


class DecoderStage(Stage):
    """A decoder, or a slice of it, as one module of a schedule over texts.

    The first stage takes ids [B, T]; between stages travel the tokens [B, T, D] and, for a tied
    head, its matrix. The criterion has the last word.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        x: Tensor,
        tied_VD: Tensor | None = None,
        *,
        length_B: Tensor,
        keep_BL2: Tensor | None = None,
        **rows: Tensor,
    ) -> Tensor | tuple[Tensor, ...]:
        """[B, C], what the criterion makes of the logits; or the tokens for the next stage."""
        real_BT = real_tokens(self.decoder.config.transformer, length_B, x.size(1))
        out = self.decoder(x, real_BT=real_BT, keep_BL2=keep_BL2, tied_VD=tied_VD)
        if self.decoder.head is None:
            handed_on = self.decoder.matrix_to_hand_on(x)
            tied_VD = tied_VD if handed_on is None else handed_on
            return (out,) if tied_VD is None else (out, tied_VD)
        assert self._criterion is not None, "a stage trains; Decoder is for the rest"
        return self._criterion({"written": out}, rows | {"length_B": length_B})

    def stacks(self) -> dict[str, Stack]:
        """The decoder's."""
        config, path = self.decoder.config, "decoder.transformer"
        stack = Stack(blocks=self.decoder.transformer, key=path, tokens=config.context_length)
        return {path: stack}

    def cuts(self) -> Cuts:
        """As often as there are layers."""
        most = self.decoder.config.transformer.num_layers
        return Cuts(most=most, what=f"decoder.transformer.num_layers = {most}")

    def _cut(self, index: int, num_stages: int) -> "DecoderStage":
        """A slice of the layers."""
        return DecoderStage(slice_tower(self.decoder, index, num_stages))


def real_tokens(config: TransformerConfig, length_B: Tensor, num_tokens: int) -> Tensor | None:
    """[B, T], False for padding behind each row's `length_B` tokens. None under a causal mask: what
    stands behind a token does not reach it, so that kernels take a flag and no mask of every row;
    what padding gets is nobody's."""
    if config.mask == "causal":
        return None
    return torch.arange(num_tokens, device=length_B.device) < length_B[:, None]


def _at(table: RopeTable | None, position_BT: Tensor) -> RopeTable | None:
    return None if table is None else (table[0][position_BT], table[1][position_BT])


def _positions(x: Tensor, real_BT: Tensor | None) -> Tensor:
    """Positions of tokens without a cache: [T] where no row is padded, else [B, T]."""
    if real_BT is None:
        return torch.arange(x.size(1), device=x.device)
    return (real_BT.cumsum(1) - 1).masked_fill(~real_BT, 0)
