"""One sample: from its files to pixels, a caption and a label, or the reason why not."""

import copy
import hashlib
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mmtrain.data.batch import SampleMeta
from mmtrain.data.feature_files import read_npy
from mmtrain.data.images.decode import IMAGE_EXTENSIONS, MAX_IMAGE_PIXELS, decode_image, is_image
from mmtrain.data.images.transforms import TrainTransform
from mmtrain.data.sample_error import IncompleteError, SampleError
from mmtrain.data.sources.open import explained
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.storage.patience import patience, patiently
from mmtrain.data.text.caption_text import caption_lines, split_captions
from mmtrain.data.work import COUNTER
from mmtrain.files import parse_json

_IMAGES = frozenset(IMAGE_EXTENSIONS)
_TEXTS = {"txt", "json", "cls"}

_NO_LABELS = {"", "null", "none", "nan", "nat", "<na>", "[]", "{}"}

UNIQUE = -1
"""The label of a sample that shares its concept with no other."""

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


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """Features that lie in a file of each sample."""

    name: str
    """The file is NAME.npy."""
    width: int
    """How many there must be."""

    def read(self, members: Mapping[str, bytes]) -> np.ndarray | None:
        """Those of a sample; None where it has no such file.

        Raises:
            SampleError: they are none, or of another width.
        """
        content = members.get(f"{self.name}.npy")
        if content is None:
            return None
        try:
            with np.errstate(over="ignore"):  # found below
                found_E = read_npy(io.BytesIO(content)).astype(np.float32)
        except ValueError as error:
            raise SampleError(f"{self.name} are no features", detail=str(error)) from error
        if found_E.shape != (self.width,):
            told = f"shape {found_E.shape}, wanted {self.width} numbers"
            raise SampleError(f"{self.name} do not fit", detail=told)
        if not np.isfinite(found_E).all() or not found_E.any():
            told = "all are 0, which has no direction" if not found_E.any() else "not all finite"
            raise SampleError(f"{self.name} cannot be learnt from", detail=told)
        return found_E


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
        return {*_IMAGES, *self._wanted}

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
            alone = self.source.read(sample).keys() <= _IMAGES
        except SampleError:
            return f"{told}; mend such samples"
        remedy = "give each image a .txt of its name" if alone else "name a place that it has"
        return f"{told}; {remedy}"


def read_members(
    source: SampleSource,
    sample: int,
    names: Collection[str] | None = (),
    *,
    or_json: bool = False,
    image: bool = True,
    retry_seconds: float | None = None,
) -> dict[str, bytes]:
    """A sample's image and the files that are asked for, by extension; nothing else is read.

    Args:
        source: the samples.
        sample: its number.
        names: extensions beside the image's; None: all files.
        or_json: read the .json where a name is no file of the sample: it may be a field.
        image: read the image too.
        retry_seconds: how long a disk's fault is given to pass; None: see `waiting`.

    Raises:
        SampleError, OSError: as of the source.
    """

    def read(wanted: Collection[str] | None) -> dict[str, bytes]:
        return patiently(lambda: source.read(sample, wanted), seconds=patience(retry_seconds))

    if names is None:
        return read(None)
    members = read({*_IMAGES, *names} if image else names)
    if image and not members.keys() & _IMAGES:
        return read(None)  # its image may be under any name
    if or_json and "json" not in members and any(name not in members for name in names):
        members |= read({"json"})
    return members


def label_of(value: Any) -> int:
    """A label that is the same on every machine: 63 bits of a hash; -1 where there is none.

    None are null, NaN, blank text, an empty list, and the words that tables are written with for
    these. Whole numbers are the same with and without a point: a column with gaps has them so.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if text.strip().lower() in _NO_LABELS:
        return UNIQUE
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def image_file(members: Mapping[str, bytes]) -> bytes:
    """The image among a sample's files: by its extension, or else by its content.

    Raises:
        SampleError: there is none, or there are several of unknown extensions.
    """
    for extension in IMAGE_EXTENSIONS:
        if extension in members:
            return members[extension]
    found = [name for name in members.keys() - _TEXTS if is_image(members[name])]
    if len(found) > 1:
        names = ", ".join(f".{name}" for name in sorted(found))
        told = f"several images ({names}); name one by image_key"
        raise IncompleteError(told, wanted=IMAGE_EXTENSIONS)
    if not found:
        raise IncompleteError("no image", wanted=IMAGE_EXTENSIONS)
    return members[found[0]]


def json_fields(data: bytes | None) -> dict[str, Any]:
    """A sample's .json; empty where it has none.

    Raises:
        SampleError: it is no JSON object.
    """
    if data is None:
        return {}
    try:
        fields = parse_json(data)
    except ValueError as error:
        raise SampleError("json invalid") from error
    if not isinstance(fields, dict):
        raise SampleError("json invalid")
    return fields


def captions_in(
    name: str, members: Mapping[str, bytes], fields: dict[str, Any], lines: bool | None
) -> list[str]:
    """The captions in one place; blank ones and what is no text do not count.

    Args:
        name: `txt`, or a field of the .json.
        members: the sample's files by extension.
        fields: its .json.
        lines: as `split_captions`.

    Raises:
        SampleError: the .txt is no UTF-8.
    """
    if name == "txt":
        try:
            texts = [members["txt"].decode("utf-8")] if "txt" in members else []
        except UnicodeDecodeError as error:
            raise SampleError("caption is no UTF-8") from error
    else:
        value = fields.get(name)
        texts = value if isinstance(value, list) else [value]
    split = [split_captions(text, lines=lines) for text in texts if isinstance(text, str)]
    return [text for some in split for text in some if text.strip()]
