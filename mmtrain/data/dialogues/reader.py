"""One dialogue: from its files to pieces of images and tokens, or the reason why not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtrain.data.batch import SampleMeta
from mmtrain.data.dialogues.source import dialogue_files
from mmtrain.data.dialogues.tokens import DialogueText, DialogueTokens
from mmtrain.data.images.decode import MAX_IMAGE_PIXELS, decode_image
from mmtrain.data.images.tiles import WHOLE, TilesConfig, cut
from mmtrain.data.images.transforms import PreprocessConfig, TrainTransform
from mmtrain.data.members import UNIQUE
from mmtrain.data.samples import Sample, SampleReader
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.storage.patience import patiently
from mmtrain.data.work import COUNTER


@dataclass(frozen=True, kw_only=True)
class DialogueSample(Sample):
    """One usable dialogue."""

    pieces_PCHW: Tensor
    """uint8, the pieces of its images one after another; [P, 0] where no pixels are asked for."""
    place_P2: Tensor
    """int64, row and column of each in its image's grid."""
    tokens: DialogueTokens | None
    """None where nobody asks for them."""


class DialogueReader(SampleReader):
    """Reads dialogues by number.

    Args:
        source: the dialogues.
        transform: as `SampleReader` takes it; all images of a dialogue are cropped and mirrored
            alike, since its words may compare them.
        text: what makes tokens of it; None: nobody asks for them.
        tiles: how images are cut, without a crop; None: not at all.
        preprocess: the size of a piece and the filter.
        max_pixels: height times width of an image at most.
        at_least: see `decode_image`.
        retry_seconds: as `SampleReader` takes it.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        transform: TrainTransform | None,
        text: DialogueText | None = None,
        tiles: TilesConfig | None = None,
        preprocess: PreprocessConfig | None = None,
        max_pixels: int = MAX_IMAGE_PIXELS,
        at_least: int | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(
            source,
            transform=transform,
            captions={},
            max_pixels=max_pixels,
            at_least=at_least,
            retry_seconds=retry_seconds,
        )
        self._text, self._tiles, self._preprocess = text, tiles, preprocess

    @property
    def wanted(self) -> None:
        """All: which of its files are images, the dialogue says."""

    def _read(self, sample: int, caption_draws: Sequence[float], transform_draws: Tensor) -> Sample:
        with COUNTER.stage("read"):
            members = patiently(lambda: self.source.read(sample), seconds=self.retry_seconds)
        COUNTER.read(sum(map(len, members.values())))
        dialogue, files = dialogue_files(members)
        pieces: list[Tensor] = []
        places: list[Tensor] = []
        for file in files:
            with COUNTER.stage("decode"):
                pixels_HWC = decode_image(
                    file, max_pixels=self._max_pixels, at_least=self._at_least
                )
            with COUNTER.stage("resize"):
                piece_PCHW, place_P2 = self._pieces(torch.from_numpy(pixels_HWC), transform_draws)
            pieces.append(piece_PCHW)
            places.append(place_P2)
        tokens = None
        if self._text is not None:
            with COUNTER.stage("text"):
                tokens = self._text.encode(dialogue.turns, [each.size(0) for each in places])
            COUNTER.shortened(is_shorter=tokens.num_left_out > 0)
        return DialogueSample(
            key=self.source.key(sample),
            pixels_CHW=torch.empty(0, dtype=torch.uint8),
            caption="",
            label=UNIQUE,
            meta=SampleMeta(captions=(), fields={}),
            pieces_PCHW=torch.cat(pieces) if pieces else torch.empty(0, 0, dtype=torch.uint8),
            place_P2=torch.cat(places) if places else torch.empty(0, 2, dtype=torch.int64),
            tokens=tokens,
        )

    def _pieces(self, pixels_HWC: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Of one image; their number hangs on its size alone."""
        if self._tiles is not None and self._preprocess is not None:
            pieces_PCHW, place_P2 = cut(
                pixels_HWC,
                self._tiles,
                size=self._preprocess.image_size,
                interpolation=self._preprocess.interpolation,
            )
        else:
            place_P2 = torch.full((1, 2), WHOLE)
            pieces_PCHW = pixels_HWC[None]
            if self._transform is not None:
                pieces_PCHW = self._transform(pixels_HWC.numpy(), draws)[None]
        if self._transform is None:
            pieces_PCHW = torch.empty(place_P2.size(0), 0, dtype=torch.uint8)
        return pieces_PCHW, place_P2
