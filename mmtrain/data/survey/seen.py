"""One sample as somebody looks at it: also one that a training could not use."""

import io
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmtrain.data.images.decode import MAX_IMAGE_PIXELS, decode_image
from mmtrain.data.members import captions_in, image_file, json_fields
from mmtrain.data.sample_error import IncompleteError, SampleError
from mmtrain.data.samples import NO_CAPTION
from mmtrain.data.sources.open import explained
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.storage.patience import patience, patiently


class Picture(NamedTuple):
    """An image of a sample."""

    image: bytes
    """Its file."""
    kind: str
    """Its format as Pillow calls it, such as JPEG."""
    pixels_HWC: np.ndarray
    """Decoded."""


@dataclass(kw_only=True)
class Seen:
    """What could be found out about a sample."""

    number: int
    """Its number in the source."""
    key: str
    """Its key."""
    place: str
    """The shard, table or folder that it is in."""
    captions: tuple[str, ...] = ()
    """All its captions in the places asked for; of a dialogue what is said, turn by turn."""
    roles: tuple[str, ...] = ()
    """Of a dialogue who says it."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Its .json."""
    image: bytes = b""
    """Its image's file; empty where it has none."""
    kind: str = ""
    """The image's format as Pillow calls it, such as JPEG."""
    pixels_HWC: np.ndarray | None = None
    """The image decoded; None where it cannot be."""
    others: tuple[Picture, ...] = ()
    """Of a dialogue the images behind the first."""
    reason: str = ""
    """Why it cannot be used; empty: it can."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height."""
        return None if self.pixels_HWC is None else self.pixels_HWC.shape[1::-1]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All images that can be decoded."""
        if self.pixels_HWC is None:
            return ()
        return (Picture(self.image, self.kind, self.pixels_HWC), *self.others)


def look_at(
    source: SampleSource,
    number: int,
    *,
    captions: Collection[str],
    caption_lines: bool | None = None,
) -> Seen:
    """Read and decode a sample.

    Args:
        source: the samples.
        number: which one.
        captions: places where captions are, as `data.captions`; empty: none are wanted.
        caption_lines: as `data.caption_lines`.

    Raises:
        OSError: it cannot be read just now, tried several times.
    """
    seen = Seen(number=number, key=source.key(number), place=source.place(number))
    try:
        _look(seen, source, captions, caption_lines)
    except SampleError as error:
        if isinstance(error, IncompleteError):
            error = explained(error, source, number)
        seen.reason = error.told
    return seen


def _look(seen: Seen, source: SampleSource, captions: Collection[str], lines: bool | None) -> None:
    members = patiently(lambda: source.read(seen.number), seconds=patience())
    seen.fields = json_fields(members.get("json"))
    texts = [t for place in captions for t in captions_in(place, members, seen.fields, lines)]
    seen.captions = tuple(dict.fromkeys(texts))
    seen.image = image_file(members)
    seen.kind = kind_of(seen.image)
    seen.pixels_HWC = decode_image(seen.image, max_pixels=MAX_IMAGE_PIXELS)
    if captions and not texts:
        wanted = {"txt" if place == "txt" else "json" for place in captions}
        raise IncompleteError(NO_CAPTION, wanted=wanted)


def kind_of(image: bytes) -> str:
    """Its format as Pillow calls it; empty where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(image)) as opened:
                return opened.format or ""
    except Exception:  # no image makes Pillow raise nearly anything; decoding tells what is wrong
        return ""
