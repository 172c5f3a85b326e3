"""JPEG, PNG and WebP bytes to RGB pixels, the same pixels as Pillow's `convert("RGB")`.

So alpha is dropped, palettes are looked up, and a camera's EXIF orientation is not applied: what
open_clip trains on and evaluates with. What Pillow accepts is accepted; what it refuses gets a
reason.
"""

import io
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mmtrain.data.shards import SampleError

MAX_IMAGE_PIXELS = 1 << 26
"""Default limit: 67 million pixels take 200 MB; a 9 KB PNG can claim twice that."""

HIGHEST_MAX_IMAGE_PIXELS = 178_956_970
"""Pillow's own limit, which no setting of ours lifts."""

ReadT = TypeVar("ReadT")

_FORMATS = ("JPEG", "PNG", "WEBP")
_MAGIC = (b"\xff\xd8", b"\x89PNG", b"RIFF")
# The others (CMYK and YCCK) differ from Pillow's pixels by a level.
_EXACT_COLORSPACES = ("YCbCr", "Gray", "RGB")
# KeyError: a header cut before the colours are told.
_SIMPLEJPEG_ERRORS = (ValueError, KeyError)


def decode_image(
    data: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS, at_least: int | None = None
) -> np.ndarray:
    """uint8 [H, W, 3] pixels.

    Args:
        data: the file.
        max_pixels: height times width at most, judged by the header, before anything is decoded.
        at_least: allow a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides
            keep this many pixels: faster, but not the exact pixels. None: exact.

    Raises:
        SampleError: no image of these kinds, damaged, or too large.
    """
    if data[:2] == _MAGIC[0]:
        pixels = _decode_jpeg(data, max_pixels, at_least)
        if pixels is not None:
            return pixels
    elif (size := _webp_size(data)) is not None:
        _refuse_large(*size, max_pixels)  # Pillow makes room for the pixels when it opens a WebP
    return _decode_with_pillow(data, max_pixels)


def _decode_jpeg(data: bytes, max_pixels: int, at_least: int | None) -> np.ndarray | None:
    """The pixels, 2.5 times as fast as Pillow; None leaves the file and its verdict to Pillow."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except _SIMPLEJPEG_ERRORS:
        return None
    # The library itself has no limit: 30 bytes can claim 65500 x 65500.
    _refuse_large(int(height), int(width), max_pixels)
    if colorspace not in _EXACT_COLORSPACES:
        return None
    smallest = at_least or 0
    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", min_height=smallest, min_width=smallest, min_factor=2 if at_least else 1
        )
    except _SIMPLEJPEG_ERRORS:
        return None


def open_image(data: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Pillow's own decoded image, in the file's own mode: what a Pillow-exact preprocess takes,
    which resizes before it changes the mode to RGB.

    Args:
        data: the file.
        max_pixels: height times width at most, judged by the header, before anything is decoded.

    Raises:
        SampleError: as `decode_image`, for the same reasons.
    """
    if (size := _webp_size(data)) is not None:
        _refuse_large(*size, max_pixels)
    return _read_with_pillow(data, max_pixels, _loaded)


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def _decode_with_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    return _read_with_pillow(data, max_pixels, lambda image: np.array(image.convert("RGB")))


def _read_with_pillow(data: bytes, max_pixels: int, read: Callable[[Image.Image], ReadT]) -> ReadT:
    try:
        # Pillow warns of images that it finds large and of odd palettes; we judge the size here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _refuse_large(image.height, image.width, max_pixels)
                return read(image)
    except (SampleError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise SampleError("image too large") from error
    except UnidentifiedImageError as error:
        known = data.startswith(_MAGIC)
        raise SampleError("image corrupt" if known else "no JPEG, PNG or WebP image") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        cut = "truncated" in str(error).lower()
        raise SampleError("image truncated" if cut else "image corrupt") from error


def _refuse_large(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise SampleError("image too large")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in a WebP's header; None if it is none. RFC 9649, section 2."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":
            width, height = data[24:27], data[27:30]
            return int.from_bytes(height, "little") + 1, int.from_bytes(width, "little") + 1
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        case b"VP8 ":
            width, height = data[26:28], data[28:30]
            return int.from_bytes(height, "little") & 0x3FFF, int.from_bytes(
                width, "little"
            ) & 0x3FFF
    return None
