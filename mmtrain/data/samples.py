"""One sample: from its files to pixels, a caption and a label, or the reason why not."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mmtrain.data.batch import SampleMeta
from mmtrain.data.images.decode import MAX_IMAGE_PIXELS, decode_image
from mmtrain.data.images.transforms import TrainTransform
from mmtrain.data.members import (
    IMAGES,
    UNIQUE,
    StoredFeatures,
    captions_in,
    image_file,
    json_fields,
    label_of,
    read_members,
)
from mmtrain.data.sample_error import IncompleteError, SampleError
from mmtrain.data.sources.open import explained
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.storage.patience import patience
from mmtrain.data.text.caption_text import caption_lines
from mmtrain.data.work import COUNTER

NUM_CAPTION_DRAWS = 2

NO_CAPTION = "no caption"
"""Why a sample without any text in the places asked for cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One usable sample."""

    key: str
    """Its key inside its shard."""
    pixels_CHW: Tensor
    """uint8 [3, S, S]; empty where no pixels are asked for."""
    caption: str
    """The caption that was drawn; empty where no captions are asked for."""
    label: int
    """63-bit identity of its concept; -1 is unique."""
    meta: SampleMeta
    """All captions and the .json."""
    stored_E: np.ndarray | None = None
    """fp32, features of its image that another model made, where they are asked for and there."""


class SampleReader:
    """Reads samples by number.

    Args:
        source: the shards.
        transform: what makes the model's square of pixels. None: images are decoded, which tells
            the bad ones, and let go.
        captions: weights of the places where captions are: `txt` is the .txt member, any other
            name a field of the .json, a string or a list of which one is drawn. Empty: none wanted.
        caption_lines: as `split_captions` takes it.
        label_key: field of the .json that identifies a concept; None: all are unique.
        max_pixels: height times width of an image at most.
        at_least: see `decode_image`.
        keep_fields: read the .json in any case.
        retry_seconds: how long a disk's fault is given to pass; None: see `waiting`.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        transform: TrainTransform | None,
        captions: Mapping[str, float],
        caption_lines: bool | None = None,
        label_key: str | None = None,
        max_pixels: int = MAX_IMAGE_PIXELS,
        at_least: int | None = None,
        keep_fields: bool = False,
        retry_seconds: float | None = None,
    ):
        self.source = source
        self.captions, self.caption_lines = dict(captions), caption_lines
        self.label_key = label_key
        self._transform = transform
        self._max_pixels, self._at_least = max_pixels, at_least
        self.retry_seconds = patience(retry_seconds)
        self._stored: StoredFeatures | None = None
        self._wanted: set[str] = set()
        if "txt" in captions:
            self._wanted.add("txt")
        if label_key is not None or keep_fields or captions.keys() - {"txt"}:
            self._wanted.add("json")

    def keep_stored(self, stored: StoredFeatures) -> None:
        """Read these features too."""
        self._stored = stored
        self._wanted.add(f"{stored.name}.npy")

    @property
    def wanted(self) -> Collection[str] | None:
        """The files of a sample that are read first; None: all."""
        return {*IMAGES, *self._wanted}

    def at_size(self, transform: TrainTransform | None, *, at_least: int | None) -> Self:
        """The same with another square of pixels; arguments as the class has them."""
        other = copy.copy(self)
        other._transform, other._at_least = transform, at_least
        return other

    def read(
        self, sample: int, *, caption_draws: Sequence[float], transform_draws: Tensor
    ) -> Sample:
        """The sample, its caption and its crop picked by the draws.

        Raises:
            SampleError: it cannot be used.
            OSError: the shard cannot be read, tried several times.
        """
        try:
            return self._read(sample, caption_draws, transform_draws)
        except IncompleteError as error:
            raise explained(error, self.source, sample) from error

    def _read(self, sample: int, caption_draws: Sequence[float], transform_draws: Tensor) -> Sample:
        with COUNTER.stage("read"):
            members = read_members(
                self.source, sample, self._wanted, retry_seconds=self.retry_seconds
            )
        COUNTER.read(sum(map(len, members.values())))
        fields = json_fields(members.get("json"))
        found = {
            name: captions_in(name, members, fields, self.caption_lines) for name in self.captions
        }
        caption = self._draw_caption(found, caption_draws) if self.captions else ""
        with COUNTER.stage("decode"):
            pixels = decode_image(
                image_file(members), max_pixels=self._max_pixels, at_least=self._at_least
            )
        return Sample(
            key=self.source.key(sample),
            pixels_CHW=self._to_square(pixels, transform_draws),
            caption=caption,
            label=UNIQUE if self.label_key is None else label_of(fields.get(self.label_key)),
            meta=SampleMeta(
                captions=tuple(text for texts in found.values() for text in texts), fields=fields
            ),
            stored_E=None if self._stored is None else self._stored.read(members),
        )

    def _to_square(self, pixels_HWC: np.ndarray, draws: Tensor) -> Tensor:
        if self._transform is None:
            return torch.empty(0, dtype=torch.uint8)
        with COUNTER.stage("resize"):
            return self._transform(pixels_HWC, draws)

    def _draw_caption(self, found: dict[str, list[str]], draws: Sequence[float]) -> str:
        """A place by weight among those that have a caption, then one of its captions."""
        names = sorted(name for name, texts in found.items() if texts)
        if not names:
            files = {"txt" if name == "txt" else "json" for name in self.captions}
            raise IncompleteError(NO_CAPTION, wanted=files)
        left = draws[0] * sum(self.captions[name] for name in names)
        chosen = names[-1]  # also where rounding leaves a rest
        for name in names:
            left -= self.captions[name]
            if left < 0:
                chosen = name
                break
        texts = found[chosen]
        return texts[int(draws[1] * len(texts))]

    def has_lines(self, sample: int) -> bool | None:
        """Whether each text of a sample has several lines; None where it has no text."""
        try:
            members = self.source.read(sample, self._wanted)
            fields = json_fields(members.get("json"))
            texts = [t for name in self.captions for t in captions_in(name, members, fields, None)]
        except SampleError:
            return None
        return all(len(caption_lines(text)) > 1 for text in texts) if texts else None

    def places(self, sample: int) -> set[str]:
        """Where a sample has captions; empty where it cannot be used."""
        try:
            members = self.source.read(sample, self._wanted)
            fields = json_fields(members.get("json"))
            return {n for n in self.captions if captions_in(n, members, fields, self.caption_lines)}
        except SampleError:
            return set()

    def has_label(self, sample: int) -> bool:
        """Whether the .json has a label in its field; False where it cannot be used."""
        try:
            fields = json_fields(self.source.read(sample, {"json"}).get("json"))
        except SampleError:
            return False
        return self.label_key is not None and label_of(fields.get(self.label_key)) != UNIQUE

    def describe(self, sample: int) -> str:
        """What a sample has, for the message that nothing wanted was found."""
        members: dict[str, bytes] = {}
        try:
            members = self.source.read(sample)
            keys = ", ".join(json_fields(members.get("json"))) or "no keys"
        except SampleError as error:
            keys = str(error)
            if not members:
                return f"sample {self.source.key(sample)} cannot be read ({keys})"
        files = ", ".join(f".{extension}" for extension in members)
        return f"sample {self.source.key(sample)} has {files}" + (
            f" and in its .json: {keys}" if "json" in members else ""
        )

    def describe_texts(self, sample: int) -> str:
        """The same, and what to do about captions: an image alone has no place to name."""
        told = self.describe(sample)
        try:
            alone = self.source.read(sample).keys() <= IMAGES
        except SampleError:
            return f"{told}; mend such samples"
        remedy = "give each image a .txt of its name" if alone else "name a place that it has"
        return f"{told}; {remedy}"
