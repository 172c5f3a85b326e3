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
    trained_BT: Tensor | None = None
    """Which are learnt. None: nobody asks."""
    mask: Mask | None = None
    """Who sees whom. None: each token those before it."""
    first_B: Tensor | None = None
    """Which of all images' tokens is a row's first. None: those of the row before end there."""


def side_by_side(told: Told, lengths: Sequence[int]) -> Told:
    """The rows one behind another in a single one, without their padding.

    Args:
        told: rows of one dialogue each.
        lengths: tokens of each, known to the host.
    """
    num_rows, width = told.tokens_BT.shape
    place_BT = torch.arange(width).expand(num_rows, -1)
    real_BT = place_BT < torch.tensor(lengths)[:, None]
    device = told.tokens_BT.device
    source_S = sent(real_BT.flatten().nonzero()[:, 0], device)

    def row(x_BT: Tensor) -> Tensor:
        return x_BT.flatten()[source_S][None]

    return Told(
        tokens_BT=row(told.tokens_BT),
        image_BT=row(told.image_BT),
        trained_BT=None if told.trained_BT is None else row(told.trained_BT),
        position_BT=sent(place_BT[real_BT][None], device),
        mask=Mask(causal=True, lengths=tuple(lengths)),
    )


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """The tokens that are learnt, M of all rows one after another; logits are made of no others."""

    before_M: Tensor
    """The token before each, numbered over all rows."""
    target_M: Tensor
    """Their ids."""
    at_BL: Tensor
    """Which of them are a dialogue's; any behind those."""
    counted_BL: Tensor
    """Which are."""


def learnt_tokens(told: Told, counts: Sequence[int]) -> Learnt:
    """Those that `trained_BT` marks, a row's first never among them.

    Args:
        told: dialogues, padded or side by side.
        counts: tokens of each that are learnt, known to the host.
    """
    assert told.trained_BT is not None, "who trains says what"
    device, most = told.trained_BT.device, max(1, *counts)
    num = max(1, sum(counts))  # one that counts nowhere, where there is none
    found_M = told.trained_BT.flatten().nonzero_static(size=num, fill_value=0)[:, 0]
    count_B1 = torch.tensor(counts)[:, None]
    place_BL = torch.arange(most).expand(len(counts), -1)
    at_BL = (count_B1.cumsum(0) - count_B1 + place_BL).clamp(max=num - 1)
    return Learnt(
        before_M=(found_M - 1).clamp(min=0),
        target_M=told.tokens_BT.flatten()[found_M],
        at_BL=sent(at_BL, device),
        counted_BL=sent(place_BL < count_B1, device),
    )


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
        self, image_NTD: Tensor, place_N2: Tensor, told: Told, *, at_M: Tensor | None = None
    ) -> Tensor:
        """The vision tower's tokens of every piece, where each stands, and the texts -> logits
        [B, T, V] of the token that follows each; `at_M` as the decoder takes it."""
        x_BTD = self.embedded(image_NTD, place_N2, told)
        return self.decoder(x_BTD, position_BT=told.position_BT, mask=told.mask, at_M=at_M)

    def embedded(self, image_NTD: Tensor, place_N2: Tensor, told: Told) -> Tensor:
        """What the decoder reads, [B, T, D]: texts, and images' tokens where they stand."""
        return self.placed(self.piece_tokens(image_NTD, place_N2), told)

    def piece_tokens(self, image_NTD: Tensor, place_N2: Tensor) -> Tensor:
        """The vision tower's tokens of every piece, and where each stands -> the decoder's,
        [N, P, D]."""
        image_NPD = self.image_tokens(image_NTD)
        if self.places is None:
            return image_NPD
        return image_NPD + self.places(place_N2)[:, None]

    def placed(self, image_NPD: Tensor, told: Told) -> Tensor:
        """What the decoder reads, of pieces that are the decoder's tokens already."""
        assert self.decoder.embed is not None
        text_BTD = self.decoder.embed.token(told.tokens_BT)
        # By look-up: a scatter by a mask would have the host wait for the number of its places.
        if told.first_B is None:
            source_BT = told.image_BT.flatten().cumsum(0).sub(1).view_as(told.image_BT)
        else:
            source_BT = told.image_BT.cumsum(1) - 1 + told.first_B[:, None]
        image_BTD = F.embedding(source_BT.clamp(min=0), image_NPD.flatten(0, 1))
        return torch.where(told.image_BT[..., None], image_BTD, text_BTD)

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
        trained_BT: Tensor,
        length_B: Tensor,
        place_N2: Ragged,
        host_lengths: HostLengths,
        host_trained: HostLengths,
        keep_NL2: Ragged | None = None,
        **rows: Tensor,
    ) -> Tensor:
        """[B, C], what the criterion makes of the logits.

        Args:
            pieces: of the images of every dialogue, uint8 [N, 3, H, W].
            tokens_BT: ids of the dialogues.
            image_BT: where images' tokens stand.
            trained_BT: which tokens are learnt.
            length_B: tokens, those of images counted.
            place_N2: where in its image's grid each piece stands.
            host_lengths: the lengths, for the host.
            host_trained: how many tokens of each are learnt, for the host.
            keep_NL2: factors of the tower's stochastic depth.
            rows: what the criterion reads besides.
        """
        assert self._criterion is not None, "a stage trains; DialogueGenerator is for the rest"
        with region("forward: vision"):
            image_NTD, place = self._tokens_of(pieces, place_N2, keep_NL2)
        with region("forward: heads"):
            longest = host_lengths.longest
            told = Told(
                tokens_BT=tokens_BT[:, :longest],
                image_BT=image_BT[:, :longest],
                trained_BT=trained_BT[:, :longest],
            )
            if self.packs:
                told = side_by_side(told, host_lengths.length_B.tolist())
            learnt = learnt_tokens(told, host_trained.length_B.tolist())
            written_1MV = self.generate(image_NTD, place, told, at_M=learnt.before_M)
        return self._criterion({"written": written_1MV}, rows | vars(learnt))

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
