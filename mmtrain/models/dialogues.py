"""Dialogues about images: rows in which the tokens of images stand where they are shown.

Every piece of an image (all of it, or a tile) goes through the tower and the connector once, and
its tokens take the places that the text keeps for them. All is causal. The dialogues of a
microbatch are rows padded to the longest, or stand side by side in one row without padding, none
seeing another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.data.images.tiles import TilesConfig
from mmtrain.models.connector import ConnectorConfig, GridPlaces
from mmtrain.models.generate_answers import AnswerGenerator, GenerateConfig
from mmtrain.models.model import Cuts, Stack, Stage, tower_stacks
from mmtrain.models.prefill import Prefilled, prefill, to_the_left
from mmtrain.models.vision import VisionConfig, VisionTower
from mmtrain.nn import HostLengths, Mask, Ragged, sent
from mmtrain.nn.front_door import FrontDoorConfig
from mmtrain.nn.regions import region


@dataclass(frozen=True, kw_only=True)
class Told:
    """Dialogues as rows of tokens."""

    tokens_BT: Tensor
    """Ids; anything where an image's token stands and behind the end."""
    image_BT: Tensor
    """Where images' tokens stand: as many as the pieces have, in their order."""
    position_BT: Tensor | None = None
    """Of each token in its dialogue. None: rows begin with one."""
    mask: Mask | None = None
    """Who sees whom. None: each token those before it."""
    first_B: Tensor | None = None
    """Which of all images' tokens is a row's first. None: those of the row before end there."""


def side_by_side(told: Told, lengths: Sequence[int]) -> tuple[Told, Tensor]:
    """The rows one behind another in a single one, without their padding.

    Args:
        told: rows of one dialogue each.
        lengths: tokens of each, known to the host.

    Returns:
        The row, and where in it each token of the rows stands, [B, T]; anything behind the end.
    """
    num_rows, width = told.tokens_BT.shape
    length_B = torch.tensor(lengths)
    end_B1 = length_B.cumsum(0)[:, None]
    place_T = torch.arange(width)
    real_BT = place_T < length_B[:, None]
    at_BT = (end_B1 - length_B[:, None] + place_T).clamp(max=int(end_B1[-1]) - 1)
    source_S = real_BT.flatten().nonzero()[:, 0]
    position_1S = place_T.expand(num_rows, -1)[real_BT][None]
    device = told.tokens_BT.device
    source_S, position_1S, at_BT = (sent(x, device) for x in (source_S, position_1S, at_BT))
    row = Told(
        tokens_BT=told.tokens_BT.flatten()[source_S][None],
        image_BT=told.image_BT.flatten()[source_S][None],
        position_BT=position_1S,
        mask=Mask(causal=True, lengths=tuple(lengths)),
    )
    return row, at_BT


class DialogueGenerator(AnswerGenerator):
    """connector -> front door -> place in the grid -> decoder over turns and images.

    Args:
        config: reads dialogues.
        vision: the tower before it.
        connector: from its tokens to the decoder's.
        front_door: over an image's.
        tiles: how images are cut; None: not at all, and nothing is learnt of places.
    """

    def __init__(
        self,
        config: GenerateConfig,
        *,
        vision: VisionConfig,
        connector: ConnectorConfig,
        front_door: FrontDoorConfig | None,
        tiles: TilesConfig | None,
    ) -> None:
        super().__init__(config, vision=vision, connector=connector, front_door=front_door)
        dim = config.transformer.dim
        self.places = None if tiles is None else GridPlaces(tiles, dim=dim)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, image_NTD: Tensor, place_N2: Tensor, told: Told
    ) -> Tensor:
        """The vision tower's tokens of every piece, where each stands, and the texts -> logits
        [B, T, V] of the token that follows each."""
        x_BTD = self.embedded(image_NTD, place_N2, told)
        return self.decoder(x_BTD, position_BT=told.position_BT, mask=told.mask)

    def embedded(self, image_NTD: Tensor, place_N2: Tensor, told: Told) -> Tensor:
        """What the decoder reads, [B, T, D]: texts, and images' tokens where they stand."""
        assert self.decoder.embed is not None
        image_NPD = self.image_tokens(image_NTD)
        if self.places is not None:
            image_NPD = image_NPD + self.places(place_N2)[:, None]
        text_BTD = self.decoder.embed.token(told.tokens_BT)
        # By look-up: a scatter by a mask would have the host wait for the number of its places.
        if told.first_B is None:
            source_BT = told.image_BT.flatten().cumsum(0).sub(1).view_as(told.image_BT)
        else:
            source_BT = told.image_BT.cumsum(1) - 1 + told.first_B[:, None]
        image_BTD = F.embedding(source_BT.clamp(min=0), image_NPD.flatten(0, 1))
        return torch.where(told.image_BT[..., None], image_BTD, text_BTD)

    @torch.no_grad()
    def read_on(
        self,
        image_NTD: Tensor,
        place_N2: Tensor,
        told: Told,
        length_B: Tensor,
        *,
        max_new_tokens: int,
    ) -> Prefilled:
        """Dialogues in the decoder's cache, ready for what the assistant says to be written.

        Raises:
            ValueError: one of them and what is to be written exceed the decoder's context.
        """
        x_BTD = self.embedded(image_NTD, place_N2, told)
        x_BTD, real_BT, _ = to_the_left(x_BTD, length_B)
        return prefill(self.decoder, x_BTD, real_BT=real_BT, max_new_tokens=max_new_tokens)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights by the parts' own tables."""
        super().init_weights(generator)
        if self.places is not None:
            self.places.init_weights(generator)


class DialogueStage(Stage):
    """The model as the one module of a schedule over dialogues.

    Args:
        vision: of the pieces.
        generate: goes on with the texts.
        packs: put the dialogues of a microbatch side by side.
    """

    def __init__(self, vision: VisionTower, generate: DialogueGenerator, *, packs: bool) -> None:
        super().__init__()
        self.vision, self.generate = vision, generate
        self.packs = packs

    def forward(
        self,
        pieces: Ragged,
        *,
        tokens_BT: Tensor,
        image_BT: Tensor,
        length_B: Tensor,
        place_N2: Ragged,
        host_lengths: HostLengths,
        keep_NL2: Ragged | None = None,
        **rows: Tensor,
    ) -> Tensor:
        """[B, C], what the criterion makes of the logits.

        Args:
            pieces: of the images of every dialogue, uint8 [N, 3, H, W].
            tokens_BT: ids of the dialogues.
            image_BT: where images' tokens stand.
            length_B: tokens, those of images counted.
            place_N2: where in its image's grid each piece stands.
            host_lengths: the lengths, for the host.
            keep_NL2: factors of the tower's stochastic depth.
            rows: what the criterion reads besides.
        """
        assert self._criterion is not None, "a stage trains; DialogueGenerator is for the rest"
        with region("forward: vision"):
            image_NTD, place = self._tokens_of(pieces, place_N2, keep_NL2)
        with region("forward: heads"):
            longest = host_lengths.longest
            told = Told(tokens_BT=tokens_BT[:, :longest], image_BT=image_BT[:, :longest])
            if self.packs:
                told, at_BT = side_by_side(told, host_lengths.length_B.tolist())
            else:
                at_BT = torch.arange(told.tokens_BT.numel(), device=tokens_BT.device)
                at_BT = at_BT.view_as(told.tokens_BT)
            written_RSV = self.generate(image_NTD, place, told)
        rows |= {"length_B": length_B, "tokens_RS": told.tokens_BT, "at_BT": at_BT}
        return self._criterion({"written": written_RSV}, rows)

    def _tokens_of(
        self, pieces: Ragged, place_N2: Ragged, keep_NL2: Ragged | None
    ) -> tuple[Tensor, Tensor]:
        """The tower's tokens of all pieces, [N, T, D], and where each stands. Without any, those of
        a black one that nobody reads: every rank, and every step, has gradients of the same."""
        x, place, keep = pieces.x, place_N2.x, None if keep_NL2 is None else keep_NL2.x
        if not x.size(0):
            x, place = x.new_zeros(1, *x.shape[1:]), place.new_full((1, 2), -1)
            keep = None if keep is None else keep.new_ones(1, *keep.shape[1:])
        return self.vision(x, keep_BL2=keep), place

    def stacks(self) -> dict[str, Stack]:
        """The tower's, then the decoder's."""
        decoder = self.generate.decoder
        return tower_stacks(vision=self.vision, text=None) | {
            "generate.decoder.transformer": Stack(
                blocks=decoder.transformer,
                key="vqa.generate.transformer",
                tokens=decoder.config.context_length,
            )
        }

    def cuts(self) -> Cuts:
        """It is not cut."""
        return Cuts(most=1, what="dialogues, whose rows have no shape of their own,")

    def _cut(self, index: int, num_stages: int) -> "DialogueStage":
        """The whole."""
        return self
