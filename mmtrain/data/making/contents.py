"""What a sample is in a shard: its image byte for byte, a caption in .txt, the rest in .json."""

import io
import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from PIL import Image

from mmtrain.data.images.decode import (
    IMAGE_EXTENSIONS,
    MAX_IMAGE_PIXELS,
    decode_image,
    has_image_name,
)
from mmtrain.data.members import captions_in, image_file, json_fields
from mmtrain.data.sample_error import IncompleteError
from mmtrain.data.samples import NO_CAPTION

_SAYS_NOTHING = ("image", "img")
_CALLED = {"jpeg": "jpg", "jpeg2000": "jp2", "mpo": "jpg", "ppm": "pnm", "tiff": "tif"}


def contents(
    rows: Sequence[Mapping[str, bytes]],
    *,
    name: str,
    key: str,
    captions: Collection[str],
    caption_lines: bool | None = None,
) -> dict[str, bytes]:
    """A sample's files by extension, as a shard holds them.

    The image and whatever else is no text stay as they are, and so do a .txt and a .json that say
    all there is to say already.

    Args:
        rows: the files of the sample; of a table those of each row of its image.
        name: what the source calls it.
        key: what the shard calls it.
        captions: places where captions are, as `data.captions`; empty: none are wanted.
        caption_lines: as `data.caption_lines`.

    Raises:
        SampleError: a training could not use it.
    """
    members = dict(rows[0])
    image = image_file(members)
    decode_image(image, max_pixels=MAX_IMAGE_PIXELS)
    place = next(extension for extension, content in members.items() if content is image)
    files = {k: v for k, v in members.items() if k not in (place, "txt", "json")}
    files[_extension(place, image)] = image
    fields = json_fields(members.get("json"))
    texts = _texts(rows, captions, caption_lines)
    if captions and not texts:
        wanted = {"txt" if place == "txt" else "json" for place in captions}
        raise IncompleteError(NO_CAPTION, wanted=wanted)
    if texts:
        files["txt"] = texts[0].encode("utf-8", "replace")
    elif "txt" in members:
        files["txt"] = members["txt"]
    added = dict(fields)
    if len(texts) > 1:
        added["captions"] = texts
    if "txt" in members and files.get("txt") != members["txt"] and "txt" not in captions:
        added.setdefault("txt", members["txt"].decode("utf-8", "replace"))  # another text's place
    if name != key and has_image_name(name):
        added.setdefault("file_name", name)
    if added == fields and "json" in members:
        files["json"] = members["json"]
    elif added:
        files["json"] = json.dumps(added, ensure_ascii=False).encode("utf-8", "replace")
    return files


def _texts(
    rows: Sequence[Mapping[str, bytes]], captions: Collection[str], lines: bool | None
) -> list[str]:
    found: dict[str, None] = {}
    for row in rows:
        fields: dict[str, Any] = json_fields(row.get("json"))
        for place in captions:
            texts = captions_in(place, row, fields, lines)
            found |= dict.fromkeys(text.removeprefix("\ufeff") for text in texts)
    return list(found)


def _extension(place: str, image: bytes) -> str:
    """What an image's file is called: as it was, or by its content where that said nothing."""
    if place in IMAGE_EXTENSIONS and place not in _SAYS_NOTHING:
        return place
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(image)) as opened:  # decoded before, so that it can be opened
            kind = (opened.format or "image").lower()
    kind = _CALLED.get(kind, kind)
    return kind if kind in IMAGE_EXTENSIONS else "image"
