"""What is in a sample's files: its image, captions, fields, label and stored features."""

import hashlib
import io
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtrain.data.feature_files import read_npy
from mmtrain.data.images.decode import IMAGE_EXTENSIONS, is_image
from mmtrain.data.sample_error import IncompleteError, SampleError
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.storage.patience import patience, patiently
from mmtrain.data.text.caption_text import split_captions
from mmtrain.files import parse_json

IMAGES = frozenset(IMAGE_EXTENSIONS)
_TEXTS = {"txt", "json", "cls"}

_NO_LABELS = {"", "null", "none", "nan", "nat", "<na>", "[]", "{}"}

UNIQUE = -1
"""The label of a sample that shares its concept with no other."""


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
    members = read({*IMAGES, *names} if image else names)
    if image and not members.keys() & IMAGES:
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
