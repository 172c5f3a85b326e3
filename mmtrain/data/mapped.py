"""Batches of whatever a function makes of a sample's files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmtrain.data.batch import BadSample, SampleMeta
from mmtrain.data.config import DataConfig
from mmtrain.data.images.transforms import PreprocessConfig, TrainTransform
from mmtrain.data.members import UNIQUE
from mmtrain.data.mixture import SourceSettings
from mmtrain.data.numbered import NumberedData
from mmtrain.data.samples import Sample, SampleReader
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.storage.patience import patiently
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer

Files = dict[str, Any]
"""A sample as webdataset gives it: files by extension, `__key__` and `__url__`; and `__seed__`, a
number for what the function draws, the same whenever the sample comes at this place of the
order."""
Map = Callable[[Files], Any]


@dataclass(frozen=True, kw_only=True)
class MappedBatch:
    """What a function made of the samples of a batch that one data-parallel coordinate holds."""

    content: Any
    """Collated, or a list."""
    keys: tuple[str, ...]
    """The samples' keys."""
    epoch: int
    """The epoch."""
    bad: tuple[BadSample, ...] = ()
    """Samples that others replaced."""

    def pin_memory(self) -> "MappedBatch":
        """The same with its tensors in page-locked memory."""
        from torch.utils.data._utils.pin_memory import pin_memory  # torch's own, for any nesting

        return replace(self, content=pin_memory(self.content))


class MappedData(NumberedData[MappedBatch]):
    """Batches made by a function that the caller brings.

    Args:
        config: the section [data]; what it says of captions, labels and images is the function's.
        map: files -> what goes into the batch. It may raise `SampleError`: another sample is taken.
        collate: a list of these -> the batch; None: the list.
        others: as `NumberedData`.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        map: Map,
        collate: Callable[[list[Any]], Any] | None,
        **others: Any,
    ) -> None:
        self._map, self._collate = map, collate
        super().__init__(
            config,
            preprocess=PreprocessConfig(image_size=1),
            tokenizer=build_tokenizer(TokenizerConfig()),
            images=False,
            **others,
        )

    def _build_reader(
        self, source: SampleSource, settings: SourceSettings, transform: TrainTransform | None
    ) -> SampleReader:
        return _FileReader(source, map=self._map, retry_seconds=self.config.retry_seconds)

    def batch(self, number: int) -> MappedBatch:
        """This rank's rows of a global batch."""
        rows = self.plan.rows(number)
        samples, bad = self._samples(rows, self.phases.at(number))
        made = [each for each in samples if each is not None]
        content = [each.meta.fields["made"] for each in made]
        return MappedBatch(
            content=content if self._collate is None else self._collate(content),
            keys=tuple(each.key for each in made),
            epoch=rows.epoch,
            bad=bad,
        )


class _FileReader(SampleReader):
    """Reads all files of a sample and hands them to a function."""

    def __init__(self, source: SampleSource, *, map: Map, retry_seconds: float) -> None:
        super().__init__(source, transform=None, captions={}, retry_seconds=retry_seconds)
        self._map = map

    @property
    def wanted(self) -> None:
        """All."""

    def read(self, sample: int, *, caption_draws: Any, transform_draws: Tensor) -> Sample:
        """The sample, with what the function made as a field."""
        members: Mapping[str, bytes] = patiently(
            lambda: self.source.read(sample), seconds=self.retry_seconds
        )
        files: Files = {
            "__key__": self.source.key(sample),
            "__url__": self.source.place(sample),
            "__seed__": int(caption_draws[0] * (1 << 31)),
            **members,
        }
        return Sample(
            key=files["__key__"],
            pixels_CHW=torch.empty(0),
            caption="",
            label=UNIQUE,
            meta=SampleMeta(captions=(), fields={"made": self._map(files)}),
        )


def keep_files(files: Files) -> Files:
    """The function that makes nothing of the files."""
    return files
