"""Decoding against Pillow's pixels, and what is refused: bombs, cut, damaged and other files."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmtrain.data.images import decode
from mmtrain.data.images.decode import HIGHEST_MAX_IMAGE_PIXELS, NO_IMAGE, decode_image, open_image
from mmtrain.data.sample_error import SampleError
from tests.data.shard_files import encoded, picture

FILES = {
    "jpeg": encoded(picture((67, 45)), "JPEG", quality=85),
    "jpeg 4:4:4": encoded(picture((67, 45)), "JPEG", quality=95, subsampling=0),
    "jpeg 4:2:0 progressive": encoded(picture((67, 45)), "JPEG", subsampling=2, progressive=True),
    "jpeg gray": encoded(picture((67, 45), mode="L"), "JPEG"),
    "jpeg cmyk": encoded(picture((67, 45), mode="CMYK"), "JPEG"),
    "png": encoded(picture((67, 45)), "PNG"),
    "png alpha": encoded(picture((67, 45), mode="RGBA"), "PNG"),
    "png palette": encoded(picture((67, 45), mode="P"), "PNG"),
    "png palette, transparent": encoded(picture((67, 45), mode="P"), "PNG", transparency=3),
    "png gray and alpha": encoded(picture((67, 45), mode="LA"), "PNG"),
    "png one bit": encoded(picture((67, 45), mode="1"), "PNG"),
    "webp": encoded(picture((67, 45)), "WEBP", quality=80),
    "webp lossless": encoded(picture((67, 45)), "WEBP", lossless=True),
    "webp alpha": encoded(picture((67, 45), mode="RGBA"), "WEBP", lossless=True, exact=True),
}


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_pillows(name):
    pixels = decode_image(FILES[name])
    assert (pixels.dtype, pixels.shape) == (np.uint8, (45, 67, 3))
    assert np.array_equal(pixels, by_pillow(FILES[name]))


def test_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture((30, 20)), "JPEG", exif=exif)
    assert decode_image(data).shape == (20, 30, 3)
    assert open_image(data).size == (30, 20)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("JPEG", "CMYK"), ("PNG", "I;16")])
def test_a_photo_is_turned_upright_where_that_is_asked_for(kind, mode):
    image = picture((30, 20), mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, kind, exif=exif)
    turned = open_image(data, upright=True)
    assert np.array_equal(np.asarray(turned), np.rot90(decode_image(data), -1))
    damaged = open_image(encoded(image, kind, exif=b"Exif\0\0MM\0*\0\0"), upright=True)
    assert np.array_equal(np.asarray(damaged), decode_image(data))


@pytest.mark.parametrize(
    ("at_least", "size"), [(None, (400, 304)), (310, (400, 304)), (150, (200, 152)), (20, (50, 38))]
)
def test_fast_decode_keeps_enough(at_least, size):
    data = encoded(picture((100, 76)).resize((400, 304)), "JPEG", quality=95)
    pixels = decode_image(data, at_least=at_least)
    assert pixels.shape == (size[1], size[0], 3)
    exact = np.asarray(Image.fromarray(by_pillow(data)).resize(size, Image.Resampling.BOX))
    assert np.abs(pixels.astype(int) - exact).mean() < 6
    assert np.array_equal(decode_image(FILES["png"], at_least=8), by_pillow(FILES["png"]))


@pytest.mark.parametrize("side", [600, 900, 1200, 1300, 1792])
def test_fast_decode_halves(side: int):
    """Other parts, such as 3/8, take longer than the next larger half."""
    data = encoded(picture((30, 40)).resize((side, side + 7)), "JPEG")
    for at_least in (1, 100, side // 4, side // 4 + 1, side // 2, side // 2 + 1, side, 5000):
        size = decode_image(data, at_least=at_least).shape[:2]
        assert size in [(-(-(side + 7) // part), -(-side // part)) for part in (1, 2, 4, 8)]
        assert min(size) >= min(at_least, side)
        assert min(-(-each // 2) for each in size) < at_least or min(size) == -(-side // 8)


def reason(data: bytes, **options) -> str:
    with pytest.raises(SampleError) as caught:
        decode_image(data, **options)
    return str(caught.value)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["jpeg", "jpeg 4:2:0 progressive", "png", "webp", "webp lossless"])
def test_cut_files(name, part):
    data = FILES[name]
    told = reason(data[: int(len(data) * part)])
    assert told in ("image truncated", "image corrupt")
    if name in ("jpeg", "png"):
        assert told == "image truncated"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no image that Pillow reads"),
        (b"<!DOCTYPE html><html>404</html>", "no image that Pillow reads"),
        (encoded(picture(), "EPS"), "no image that Pillow reads"),  # Ghostscript would draw it
        (encoded(picture(), "PDF"), "no image that Pillow reads"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image that Pillow reads"),
        (encoded(picture(), "GIF")[:30], "no image that Pillow reads"),
        (b"\xff\xd8\xff", "image corrupt"),
        (b"\x89PNG\r\n\x1a\n", "image corrupt"),
        (b"RIFF\x00\x00\x00\x00WEBP", "image corrupt"),
    ],
)
def test_what_is_no_image(data, told):
    assert reason(data).startswith(told)
    assert "no image" not in told or "JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF" in reason(data)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *((kind, "RGB") for kind in ("AVIF", "BMP", "DIB", "GIF", "JPEG2000", "PCX", "PPM", "QOI")),
        *((kind, "RGB") for kind in ("SGI", "TGA", "TIFF", "ICO", "DDS")),
        *(("GIF", mode) for mode in ("L", "P", "1")),
        *(("TIFF", mode) for mode in ("L", "P", "1", "LA", "RGBA", "CMYK")),
        *((kind, "RGBA") for kind in ("AVIF", "BMP", "ICO", "JPEG2000", "QOI", "TGA")),
    ],
)
def test_other_formats_are_pillows_pixels_too(kind, mode):
    """Also through the way that keeps the file's mode, for a Pillow-exact preprocess."""
    data = encoded(picture((48, 48), mode=mode), kind)
    pixels = decode_image(data)
    assert np.array_equal(pixels, by_pillow(data))
    assert np.array_equal(pixels, np.array(open_image(data).convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_animation_is_its_first_frame(kind):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    for pixels in (decode_image(data), np.array(open_image(data).resize((4, 4)).convert("RGB"))):
        assert pixels[..., 0].min() > 250 and pixels[..., 1].max() < 5


def deep_greys() -> dict[str, bytes]:
    """0 to white in 64 steps, in every way that more than 8 bits are kept."""
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    kinds = {
        f"{kind} 16": encoded(Image.fromarray(grey), kind) for kind in ("PNG", "TIFF", "JPEG2000")
    }
    big_endian = Image.frombytes("I;16B", (8, 8), grey.astype(">u2").tobytes())
    inverted = Image.fromarray(65535 - grey)
    kinds["TIFF big-endian"] = encoded(big_endian, "TIFF")
    kinds["TIFF white is zero"] = encoded(inverted, "TIFF", tiffinfo={262: 0})
    for kind in ("TIFF", "PPM"):
        kinds[f"{kind} 32"] = encoded(Image.fromarray(grey.astype(np.int32)), kind)
        kinds[f"{kind} float"] = encoded(Image.fromarray((grey / 65535).astype(np.float32)), kind)
    kinds["TIFF 0 to 255"] = encoded(Image.fromarray((grey >> 8).astype(np.int32)), "TIFF")
    kinds["TIFF float to 255"] = encoded(Image.fromarray((grey / 257).astype(np.float32)), "TIFF")
    kinds["TIFF float to 65535"] = encoded(Image.fromarray(grey.astype(np.float32)), "TIFF")
    return kinds


@pytest.mark.parametrize("name", deep_greys())
def test_deep_grey_is_scaled_to_8_bits(name):
    """Pillow's own conversion cuts off at 255: nearly all white."""
    data = deep_greys()[name]
    wanted = np.linspace(0, 255, 64).reshape(8, 8)
    for pixels in (decode_image(data), np.array(open_image(data).convert("RGB"))):
        assert np.abs(pixels[..., 0] - wanted).max() <= 1
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize(
    "values", [np.full((4, 4), np.nan), np.linspace(-1, 1, 16), np.linspace(0, 1e6, 16)]
)
def test_floats_on_no_known_scale_are_refused(values):
    data = encoded(Image.fromarray(values.reshape(4, 4).astype(np.float32)), "TIFF")
    assert "another scale" in reason(data)


def png_bomb(side: int) -> bytes:
    """A one-bit PNG of side x side in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def jpeg_bomb(side: int) -> bytes:
    """A JPEG whose frame header claims side x side."""
    data = bytearray(FILES["jpeg"])
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def webp_bombs() -> dict[str, bytes]:
    lossy, lossless = bytearray(FILES["webp"]), bytearray(FILES["webp lossless"])
    extended = bytearray(FILES["webp alpha"])
    lossy[26:30] = struct.pack("<HH", 16000, 16000)
    lossless[21:25] = struct.pack("<I", 15999 | 15999 << 14)
    webp = encoded(picture((67, 45)), "WEBP", exif=b"Exif\0\0" + bytes(20))
    extended = bytearray(webp)
    assert extended[12:16] == b"VP8X"
    extended[24:30] = (15999).to_bytes(3, "little") * 2
    return {"lossy": bytes(lossy), "lossless": bytes(lossless), "extended": bytes(extended)}


def test_bombs_are_refused_by_their_header(monkeypatch):
    """So early that none of their pixels are made: 64 million would take 200 MB and seconds."""
    bombs = {"png": png_bomb(12_000), "jpeg": jpeg_bomb(65_500)} | webp_bombs()
    with monkeypatch.context() as patched:
        patched.setattr(decode.Image, "open", None)  # which makes room for a WebP's pixels
        for name in bombs.keys() - {"png"}:
            assert reason(bombs[name]) == "image too large"
    assert len(bombs["png"]) < 30_000
    for data in bombs.values():
        assert reason(data) == "image too large"
    assert reason(png_bomb(20_000), max_pixels=HIGHEST_MAX_IMAGE_PIXELS) == "image too large"
    for name in ("jpeg", "png", "webp", "webp lossless"):
        assert reason(FILES[name], max_pixels=67 * 45 - 1) == "image too large"
        assert decode_image(FILES[name], max_pixels=67 * 45).shape == (45, 67, 3)


def claims(kind: str, side: int) -> bytes:
    """A small file whose header says side x side."""
    data = bytearray(encoded(picture((64, 64)), kind))
    if kind == "ICO":  # its own header says 64 x 64 at most: the image inside does not keep to it
        return bytes(data[: data.index(b"\x89PNG")]) + png_bomb(side)
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif kind == "JPEG2000":
        at = data.index(b"ihdr")
        data[at + 4 : at + 12] = struct.pack(">II", side, side)
    elif kind == "QOI":
        data[4:12] = struct.pack(">II", side, side)
    else:
        data = bytearray(b"P5 %d %d 255 " % (side, side))
    return bytes(data)


@pytest.mark.parametrize("side", [9_000, 30_000])
@pytest.mark.parametrize("kind", ["GIF", "BMP", "JPEG2000", "QOI", "PPM", "ICO"])
def test_bombs_of_other_formats(kind, side, monkeypatch):
    data = claims(kind, side)
    monkeypatch.setattr(decode, "_of_eight_bits", None)  # what comes before the pixels
    assert reason(data) == "image too large"


def test_damage_is_never_more_than_a_bad_sample():
    rng = random.Random(0)
    outcomes = {"decoded": 0, "refused": 0}
    for data in FILES.values():
        for _ in range(30):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 8)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            try:
                pixels = decode_image(bytes(damaged), max_pixels=1 << 20)
                assert pixels.dtype == np.uint8
                outcomes["decoded"] += 1
            except SampleError as error:
                assert len(str(error)) < 40 or str(error) == NO_IMAGE
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50
