"""Batches of images and captions by number."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.data.batch import ImageTextBatch
from mmtrain.data.config import DataConfig
from mmtrain.data.first_look import (
    refuse_unknown_captions,
    refuse_unknown_features,
    refuse_unknown_label_key,
    refuse_untold_lines,
)
from mmtrain.data.images.transforms import TrainTransform
from mmtrain.data.joins.joined import JoinedSource
from mmtrain.data.members import UNIQUE, StoredFeatures
from mmtrain.data.mixture import SourceSettings
from mmtrain.data.numbered import NumberedData
from mmtrain.data.phases import Phase
from mmtrain.data.samples import Sample, SampleReader
from mmtrain.data.sources.source import SampleSource


class ImageTextData(NumberedData[ImageTextBatch]):
    """Batches of images, each with one of its captions.

    Raises:
        UsageError: as the class above; or no sample has the label key asked for.
    """

    keeps_texts = False
    """Whether batches have their captions as texts too."""
    _stored: StoredFeatures | None = None

    def __init__(self, config: DataConfig, **common: Any) -> None:
        super().__init__(config, **common)
        owners: dict[str, list[SampleReader]] = {}
        given = config.mixture or [None]
        for source, settings, reader in zip(given, config.sources, self._readers, strict=True):
            is_own = source is not None and source.captions is not None
            owners.setdefault(settings.key if is_own else "data", []).append(reader)
        for key, readers in owners.items():
            told = f"{key}.captions = {{ {', '.join(readers[0].captions)} }}"
            refuse_unknown_captions(readers, setting=told, key=f"{key}.train")

    def keep_stored(self, stored: StoredFeatures, *, key: str) -> None:
        """Let batches have another model's features of their images.

        Args:
            stored: where they are.
            key: the setting that asks for them, for messages.

        Raises:
            UsageError: no sample has them, or they are of another width.
        """
        self._stored = stored
        for reader in self._readers:
            refuse_unknown_features(reader, stored, key)
            reader.keep_stored(stored)

    def refuse_unread_join(self, *, features: Collection[str] = ()) -> None:
        """Refuse what is joined and read by nobody.

        Args:
            features: stored features that are read.

        Raises:
            UsageError: there is such.
        """
        for source, reader in zip(self.sources, self._readers, strict=True):
            if isinstance(source, JoinedSource):
                labels = [] if reader.label_key is None else [reader.label_key]
                places = ", ".join(reader.captions)
                told = f"captions are {places} (data.captions)"
                told += f", labels {labels[0]} (data.label_key)" if labels else ""
                told += f", features {', '.join(features)} (loss.terms)" if features else ""
                source.refuse_unread({*reader.captions, *labels, *features}, told=told)

    def _build_reader(
        self, source: SampleSource, settings: SourceSettings, transform: TrainTransform | None
    ) -> SampleReader:
        reader = super()._build_reader(source, settings, transform)
        refuse_unknown_label_key(reader, settings.key)
        refuse_untold_lines(reader, settings.key)
        return reader

    def batch(self, number: int) -> ImageTextBatch:
        rows, phase = self.plan.rows(number), self.phases.at(number)
        samples, bad = self._samples(rows, phase)
        tokens_BT, length_B = self._texts(samples, phase)
        return ImageTextBatch(
            images_BCHW=self._stacked(samples, phase),
            tokens_BT=tokens_BT,
            text_length_B=length_B,
            label_B=torch.tensor([UNIQUE if each is None else each.label for each in samples]),
            **self._account(number, rows, samples, bad),
            stored_BE=None if self._stored is None else _stored(samples, self._stored.width),
            texts=tuple(map(_caption, samples)) if self.keeps_texts else (),
        )

    def _texts(self, samples: list[Sample | None], phase: Phase) -> tuple[Tensor, Tensor]:
        """Ids [B, T] and lengths [B]; a text without any token counts one of padding."""
        tokens_BT, length_B = self.tokenizer.at_length(phase.context_length).encode(
            [*map(_caption, samples)]
        )
        width = self._fixed_length or max(1, tokens_BT.size(1))
        tokens_BT = F.pad(tokens_BT, (0, width - tokens_BT.size(1)), value=self.tokenizer.pad_id)
        return tokens_BT, length_B.clamp(min=1)


def _stored(samples: list[Sample | None], width: int) -> Tensor:
    stored_BE = torch.zeros(len(samples), width)
    for row_E, sample in zip(stored_BE, samples, strict=True):
        if sample is not None and sample.stored_E is not None:
            row_E.copy_(torch.from_numpy(sample.stored_E))
    return stored_BE


def _caption(sample: Sample | None) -> str:
    return "" if sample is None else sample.caption
