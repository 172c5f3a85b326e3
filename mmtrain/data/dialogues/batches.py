"""Batches of dialogues: tokens in rows, the pieces of all their images one after another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from mmtrain.data.batch import SampleBatch
from mmtrain.data.config import DataConfig
from mmtrain.data.dialogues.config import DialogueDataConfig
from mmtrain.data.dialogues.reader import DialogueReader, DialogueSample
from mmtrain.data.dialogues.source import open_dialogues
from mmtrain.data.dialogues.tokens import TOO_LONG, DialogueText, DialogueTokens
from mmtrain.data.first_look import one_line_for_disks
from mmtrain.data.images.tiles import TilesConfig
from mmtrain.data.images.transforms import TrainTransform
from mmtrain.data.mixture import SourceSettings
from mmtrain.data.numbered import BatchOptions, NumberedData
from mmtrain.data.phases import Phase
from mmtrain.data.sample_error import SampleError
from mmtrain.data.samples import Sample, SampleReader
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError

_NUM_PROBES = 32
"""Dialogues of each source that are looked at before a run."""


@dataclass(frozen=True, kw_only=True)
class DialogueBatch(SampleBatch):
    """B dialogues of T tokens at most. `images_BCHW` has the N pieces of their images, those of a
    dialogue together, in the order in which they stand in it: whole images, or tiles and a
    thumbnail."""

    num_pieces: tuple[int, ...]
    """Pieces of each of the B dialogues; they sum to N. The host cuts batches by them."""
    place_N2: Tensor
    """int64, row and column of each piece in its image's grid; -1 twice: the whole image."""
    tokens_BT: Tensor
    """int64; the pad token where an image's stand, and behind the end."""
    length_B: Tensor
    """int64, tokens, images' counted; 1 on padding rows."""
    image_BT: Tensor
    """bool, where images' tokens stand."""
    trained_BT: Tensor
    """bool, the tokens that are learnt: the assistant's words and what ends them."""
    num_trained: tuple[int, ...]
    """How many those are of each, for the host, which has logits made of no others."""

    @property
    def text_length(self) -> Tensor:
        """The dialogues'."""
        return self.length_B

    def row_texts(self, decode: Callable[[list[int]], str]) -> list[str]:
        """Each dialogue without its images."""
        kept_BT = self.real_BT & ~self.image_BT
        rows = zip(self.tokens_BT, kept_BT, self.valid_B.tolist(), strict=True)
        return [decode(ids[kept].tolist()) if valid else "" for ids, kept, valid in rows]

    def row_images(self) -> list[Tensor]:
        """The pieces of each dialogue side by side, one black where it has none."""
        size = self.images_BCHW.shape[-2:]
        black_CHW = torch.zeros(3, *size, dtype=torch.uint8)
        pieces = self.images_BCHW.split(list(self.num_pieces))
        return [torch.cat([*each], dim=-1) if len(each) else black_CHW for each in pieces]

    @property
    def real_BT(self) -> Tensor:
        """bool, what is no padding."""
        place_T = torch.arange(self.tokens_BT.size(1), device=self.tokens_BT.device)
        return place_T < self.length_B[:, None]


def check_learnt(batch: DialogueBatch, *, tokens_per_piece: int, number: int) -> None:
    """Refuse to train on what no dialogue should be: it would teach nothing, or nonsense.

    Raises:
        UsageError: naming the batch.
    """
    images_B = batch.image_BT.sum(1)
    wanted_B = torch.tensor(batch.num_pieces) * tokens_per_piece
    faults = {
        "no token of it is trained": bool(batch.valid_B.any()) and not batch.trained_BT.any(),
        "places of images are trained": bool((batch.trained_BT & batch.image_BT).any()),
        "padding is trained": bool((batch.trained_BT & ~batch.real_BT).any()),
        "tokens of images are cut": not images_B.equal(wanted_B),
    }
    for fault, is_there in faults.items():
        if is_there:
            told = f"of {next(filter(None, batch.keys), 'padding alone')} and others"
            raise UsageError(
                f"batch {number} {told}: {fault}; mmtrain data labels shows it, token by token"
            )


class DialogueData(NumberedData[DialogueBatch]):
    """Batches of dialogues.

    Args:
        config: the recipe's section; captions and labels have no meaning here.
        dialogues: how long they may be, and where their images are.
        tiles: how images are cut; None: not at all.
        tokens_per_piece: tokens that a piece becomes.
        source: the samples, where they are open already.
        common: as NumberedData takes them.

    Raises:
        UsageError: the files cannot be read or hold no dialogues, or a setting has no effect.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        dialogues: DialogueDataConfig,
        tiles: TilesConfig | None,
        tokens_per_piece: int,
        source: SampleSource | None = None,
        **common: Unpack[BatchOptions],
    ) -> None:
        config.refuse_captions("dialogues")
        if tiles is not None and config.fast_decode:
            raise UsageError(
                "data.fast_decode = true makes images smaller before [vqa.tiles] cuts them by "
                "their size; leave out one of the two"
            )
        self.dialogues, self._tiles, self._source = dialogues, tiles, source
        self.text = DialogueText(common["tokenizer"], dialogues, tokens_per_piece=tokens_per_piece)
        self._world_size = common.get("world_size", 1)
        super().__init__(config, **common)

    def _open_source(self, settings: SourceSettings) -> SampleSource:
        if self._source is not None:
            return self._source
        return open_dialogues(
            settings.train,
            images=self.dialogues.images,
            config=self.config,
            key=f"{settings.key}.train",
            world_size=self._world_size,
        )

    def _build_reader(
        self, source: SampleSource, settings: SourceSettings, transform: TrainTransform | None
    ) -> SampleReader:
        config = self.config
        return DialogueReader(
            source,
            transform=transform,
            text=self.text,
            tiles=self._tiles,
            preprocess=self._preprocess,
            max_pixels=config.max_image_pixels,
            at_least=config.decoded_at_least(self._preprocess.image_size),
            retry_seconds=config.retry_seconds,
        )

    def told(self) -> Iterator[str]:
        """What becomes of dialogues that are too long, if there are any among some of each source.

        Raises:
            UsageError: they cannot be read.
        """
        num = num_shorter = num_bad = 0
        draws = torch.full((TrainTransform.num_draws,), 0.5)
        for reader in self._readers:
            last = reader.source.num_samples - 1
            for sample in {last * n // (_NUM_PROBES - 1) for n in range(_NUM_PROBES)}:
                num += 1
                try:
                    with one_line_for_disks("data.train"):
                        read = reader.read(sample, caption_draws=(), transform_draws=draws)
                except SampleError as error:
                    num_bad += str(error) == TOO_LONG
                    continue
                tokens = _tokens_of(read)
                num_shorter += tokens is not None and tokens.num_left_out > 0
        if num_shorter or num_bad:
            yield (
                f"of {num} dialogues looked at, {num_shorter + num_bad} are longer than "
                f"vqa.dialogues.max_length = {self.dialogues.max_length}: {num_shorter} lose their "
                f"oldest turns, {num_bad} cannot be used"
            )

    def batch(self, number: int) -> DialogueBatch:
        """This rank's rows of a global batch."""
        rows, phase = self.plan.rows(number), self.phases.at(number)
        samples, bad = self._samples(rows, phase)
        tokens_BT, length_B, image_BT, trained_BT = self._laid_out(samples)
        batch = DialogueBatch(
            images_BCHW=self._pieces(samples, phase),
            num_pieces=tuple(_num_pieces(each) for each in samples),
            place_N2=torch.cat([_place_P2(each) for each in samples]),
            tokens_BT=tokens_BT,
            length_B=length_B,
            image_BT=image_BT,
            trained_BT=trained_BT,
            num_trained=tuple(trained_BT.sum(1).tolist()),
            **self._account(number, rows, samples, bad),
        )
        check_learnt(batch, tokens_per_piece=self.text.tokens_per_piece, number=number)
        return batch

    def _laid_out(self, samples: list[Sample | None]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, lengths, where images stand and what is learnt, [B, T] but for the lengths."""
        found = [_tokens_of(each) for each in samples]
        lengths = [1 if one is None else len(one.ids) for one in found]
        width = self.dialogues.max_length if self._fixed_length else max(lengths)
        tokens_BT = torch.full((len(found), width), self.tokenizer.pad_id)
        image_BT = torch.zeros(len(found), width, dtype=torch.bool)
        trained_BT = torch.zeros_like(image_BT)
        for row, one in enumerate(found):
            if one is not None:
                tokens_BT[row, : lengths[row]] = torch.tensor(one.ids)
                image_BT[row, : lengths[row]] = torch.tensor(one.image)
                trained_BT[row, : lengths[row]] = torch.tensor(one.trained)
        return tokens_BT, torch.tensor(lengths), image_BT, trained_BT

    def _pieces(self, samples: list[Sample | None], phase: Phase) -> Tensor:
        each = [s.pieces_PCHW for s in samples if isinstance(s, DialogueSample) and len(s.place_P2)]
        if not self._images:
            return torch.empty(sum(map(len, each)), 0, dtype=torch.uint8)
        size = phase.image_size or self._preprocess.image_size
        return self._memory.stacked([piece for pieces in each for piece in pieces], size=size)


def _tokens_of(sample: Sample | None) -> DialogueTokens | None:
    return sample.tokens if isinstance(sample, DialogueSample) else None


def _num_pieces(sample: Sample | None) -> int:
    return sample.place_P2.size(0) if isinstance(sample, DialogueSample) else 0


def _place_P2(sample: Sample | None) -> Tensor:
    if isinstance(sample, DialogueSample):
        return sample.place_P2
    return torch.empty(0, 2, dtype=torch.int64)
