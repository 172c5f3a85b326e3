"""Bytes of a still image to RGB pixels, the same pixels as Pillow's `convert("RGB")`.

So alpha is dropped, palettes are looked up, and a camera's EXIF orientation is not applied, before
any resize: what open_clip's readers of shards and torchvision's of folders train on and evaluate
with. What Pillow accepts is accepted, told by its content; what it refuses gets a reason. Grey of
16 bits, which Pillow would cut off at 255, is scaled to 8 first.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from mmtrain.data.sample_error import SampleError

MAX_IMAGE_PIXELS = 1 << 26
"""Default limit: 67 million pixels take 200 MB; a 9 KB PNG can claim twice that."""

HIGHEST_MAX_IMAGE_PIXELS = 178_956_970
"""Pillow's own limit, which no setting of ours lifts."""

IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "jp2", "j2k", "jpx"),
    *("j2c", "jpc", "jpe", "jfif", "mpo", "apng", "dib", "ico", "icns", "cur", "ppm", "pgm", "pbm"),
    *("pnm", "pfm", "tga", "qoi", "pcx", "sgi", "rgb", "psd", "dds", "xbm", "xpm", "image", "img"),
    *("heic", "heif", "jxl"),
)
"""What files of images are called, without the dot; of several in a sample the first here counts.
The last ones Pillow cannot read by itself: they are told as bad samples, not passed over."""

NO_IMAGE = "no image that Pillow reads (JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, JPEG 2000 ...)"
"""Why other files cannot be used."""

ReadT = TypeVar("ReadT")

_FORMATS = ("JPEG", "PNG", "WEBP")
_OTHER_FORMATS = (
    *("AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO", "DIB", "ICNS", "CUR", "PSD", "QOI"),
    *("BLP", "DCX", "DDS", "FITS", "FLI", "FTEX", "GBR", "IM", "IMT", "MCIDAS", "MSP", "PCD"),
    *("PCX", "PIXAR", "SGI", "SPIDER", "SUN", "TGA", "XBM", "XPM", "XVTHUMB"),
)
"""Still images, and animations of which the first frame is taken. Never: EPS, which runs
Ghostscript; WMF, BUFR, GRIB and HDF5, which other programs draw; IPTC, which holds any of these."""
_CONTAINERS = (b"\0\0\1\0", b"\0\0\2\0", b"icns")
"""Icons: their headers do not bind the images inside, and Pillow decodes one as it opens them."""
_OTHER_MAGIC = (b"GIF8", b"II*\0", b"MM\0*", b"\xff\x4f\xff\x51", b"8BPS", b"qoif")
_MAGIC_AT_4 = (b"ftypavif", b"ftypavis", b"ftypheic", b"jP  \r\n\x87\n")
_PNG = b"\x89PNG\r\n\x1a\n"
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
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
    if data[:2] == b"\xff\xd8":
        pixels = _decode_jpeg(data, max_pixels, at_least)
        if pixels is not None:
            return pixels
    elif (size := webp_size(data)) is not None:
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
    factor = 1 if at_least is None else _factor(int(height), int(width), at_least)
    try:
        return simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=-(-int(height) // factor),
            min_width=-(-int(width) // factor),
            min_factor=factor,
        )
    except _SIMPLEJPEG_ERRORS:
        return None


def _factor(height: int, width: int, at_least: int) -> int:
    """By how much a JPEG is decoded smaller: libjpeg-turbo's other sizes, such as 3/8, take longer
    than the next larger one of these."""
    fits = (factor for factor in (8, 4, 2) if min(height, width) > factor * (at_least - 1))
    return next(fits, 1)


def open_image(
    data: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS, upright: bool = False
) -> Image.Image:
    """The same pixels, decoded by Pillow alone, as an image in RGB: what a Pillow-exact preprocess
    takes.

    It is in RGB before it is resized, as in training: Pillow resizes transparent places to black,
    whatever colour they hide, and palettes without a filter.

    Args:
        data: the file.
        max_pixels: height times width at most, judged by the header, before anything is decoded.
        upright: turn it as the camera was held, by its EXIF.

    Raises:
        SampleError: as `decode_image`, for the same reasons.
    """
    if (size := webp_size(data)) is not None:
        _refuse_large(*size, max_pixels)
    return _read_with_pillow(data, max_pixels, _upright if upright else rgb_image)


def has_image_name(name: str) -> bool:
    """Whether a file is called as images are."""
    return os.path.splitext(name)[1][1:].lower() in IMAGE_EXTENSIONS


def may_be_image(cell: Any) -> bool:
    """Whether a cell of a table is an image, its path, or a list with one of these."""
    if isinstance(cell, list):
        return any(map(may_be_image, cell))
    if isinstance(cell, dict):
        return any(cell.get(name) for name in ("bytes", "path"))
    return has_image_name(cell) if isinstance(cell, str) else isinstance(cell, bytes)


def has_image_magic(head: bytes) -> bool:
    """Whether a file begins as the common images do; 16 bytes are enough."""
    return _is_common(head) or head.startswith(_OTHER_MAGIC) or head[4:12] in _MAGIC_AT_4


def is_image(data: bytes) -> bool:
    """Whether the header is one of an image that is decoded here."""
    if _is_common(data):
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_OTHER_FORMATS):
                return True
    except Exception:  # no image makes Pillow raise nearly anything
        return False


def _is_common(data: bytes) -> bool:
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return is_webp or data.startswith((b"\xff\xd8", b"\x89PNG"))


def rgb_image(image: Image.Image) -> Image.Image:
    """Pillow's image in RGB, always a copy.

    Raises:
        SampleError: there is no telling which colours its numbers are.
    """
    return _of_eight_bits(image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    plain = _of_eight_bits(image)
    plain.info = image.info
    # Damaged EXIF makes Pillow raise nearly anything, and the image is fine.
    with contextlib.suppress(Exception):
        plain = ImageOps.exif_transpose(plain)
    return rgb_image(plain)


def _rgb(image: Image.Image) -> np.ndarray:
    return np.array(rgb_image(image))


def _decode_with_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    return _read_with_pillow(data, max_pixels, _rgb)


def _read_with_pillow(data: bytes, max_pixels: int, read: Callable[[Image.Image], ReadT]) -> ReadT:
    is_common = _is_common(data)
    try:
        # Pillow warns of images that it finds large and of odd palettes; we judge the size here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            formats = _FORMATS if is_common else _OTHER_FORMATS
            if data.startswith(_CONTAINERS):
                _refuse_large_inside(data, max_pixels)
            with Image.open(io.BytesIO(data), formats=formats) as image:
                _refuse_large(image.height, image.width, max_pixels)
                return read(image)
    except (SampleError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise SampleError("image too large") from error
    except UnidentifiedImageError as error:
        raise SampleError("image corrupt" if is_common else NO_IMAGE) from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        cut = "truncated" in str(error).lower()
        raise SampleError("image truncated" if cut else "image corrupt") from error


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """Deep grey as 8 bits, the high ones, as Pillow takes them of colours; others as they are."""
    if image.mode == "LAB":
        raise SampleError("image of CIELAB colours, which are not converted")
    if image.mode not in _DEEP_MODES:
        return image
    values_HW = np.asarray(image)
    white = _white(image, values_HW)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
        values_HW = white - values_HW  # Pillow inverts 8 bits only
    if image.mode == "F":
        grey_HW = np.rint(values_HW * (255 / white))
    else:
        grey_HW = values_HW.astype(np.int64) * 256 // (white + 1)
    return Image.fromarray(grey_HW.astype(np.uint8))


def _white(image: Image.Image, values_HW: np.ndarray) -> int:
    """The value that is white.

    Raises:
        SampleError: numbers of 32 bits that are on no scale for images.
    """
    if image.mode.startswith("I;16"):
        bits = image.tag_v2.get(BITSPERSAMPLE, (16,)) if isinstance(image, TiffImageFile) else (16,)
        return (1 << int(bits[0])) - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return (1 << 16) - 1
    # 32 bits may hold anything: the smallest of the usual scales that holds all pixels.
    low, high = float(values_HW.min()), float(values_HW.max())
    for white in (1, 255, 65535)[image.mode == "I" :]:
        if low >= 0 and high <= white:
            return white
    raise SampleError("pixels of 32 bits on another scale than 0 to 1, 255 or 65535")


def _refuse_large(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise SampleError("image too large")
    if height * width == 0:
        raise SampleError("image corrupt")


def _refuse_large_inside(data: bytes, max_pixels: int) -> None:
    """Judge the PNGs in a container by their own headers."""
    at = data.find(_PNG)
    while at >= 0:
        width, height = data[at + 16 : at + 20], data[at + 20 : at + 24]
        _refuse_large(int.from_bytes(height), int.from_bytes(width), max_pixels)
        at = data.find(_PNG, at + 1)


def webp_size(data: bytes) -> tuple[int, int] | None:
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
