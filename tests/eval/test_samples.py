"""Pixels of an evaluation are Pillow's own, and every sample is there once."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.open import open_source
from mmtrain.eval.samples import EvalBatches, decode_sample, encoded_batches, spans
from tests.data.shard_files import encoded, picture, write_shard
from tests.eval.tiny import SIDE, LinearTowers, make_encoder, write_classified


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("RGB", kind) for kind in ("JPEG", "PNG", "WEBP")),
        *((mode, "PNG") for mode in ("L", "P", "RGBA")),
        *((mode, "JPEG") for mode in ("L", "CMYK")),
        ("RGBA", "WEBP"),
    ],
)
def test_pixels_are_pillows_in_rgb(mode: str, kind: str) -> None:
    """Also palettes: looked up before any resize, as open_clip's reader of shards does it."""
    data = encoded(picture((61, 47), mode=mode), kind)
    wanted = Image.open(io.BytesIO(data)).convert("RGB")
    image = decode_sample({kind.lower(): data})
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(wanted))


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes whose header promises a large picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(9))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png_that_claims(20_000, 20_000), "image too large"),
        (png_that_claims(9_000, 9_000), "image too large"),
        (encoded(picture((60, 60)), "JPEG")[:-200], "image truncated"),
        (encoded(picture((60, 60)), "PNG")[:-200], "image truncated"),
        (b"GIF89a" + bytes(30), "no image that Pillow reads"),
        (b"", "no image that Pillow reads"),
    ],
)
def test_what_pillow_refuses_gets_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=f"^{reason}"):
        decode_sample({"png": data})


def test_an_elongated_image_is_a_fault(tmp_path: Path) -> None:
    """Its shorter side to 16 pixels would make the longer one fill the memory."""
    files = {"png": encoded(Image.new("L", (60_000, 1)), "PNG"), "cls": "0"}
    source = open_source(str(write_shard(tmp_path / "a.tar", [("long", files)])))
    batches = EvalBatches(
        source, PreprocessConfig(image_size=4000), read_value=lambda _: 0, spans=[range(1)]
    )
    (fault,) = batches.batch(0).faults
    assert (fault.reason, fault.is_bad_sample) == ("image too elongated", True)


@pytest.mark.parametrize("count", [1, 4, 13])
def test_every_sample_is_in_one_batch(tmp_path: Path, count: int) -> None:
    source = open_source(str(write_classified(tmp_path / "a.tar", count, num_classes=3)))
    batches = EvalBatches(
        source,
        PreprocessConfig(image_size=8),
        read_value=lambda members: int(members["cls"]),
        spans=spans(count, 4),
    )
    values: list[int] = []
    for number in range(len(batches.spans)):
        batch = batches.batch(number)
        assert batch.first == len(values)
        assert batch.images_BCHW.shape == (len(batch.values), 3, 8, 8)
        values += batch.values
    assert values == [number * 7 % 3 for number in range(count)]


def test_only_the_last_batch_is_short(tmp_path: Path) -> None:
    source = open_source(str(write_classified(tmp_path / "a.tar", 10, num_classes=3)))
    model = LinearTowers()
    rows = [
        features.shape
        for _, features in encoded_batches(make_encoder(model), source, lambda members: None)
    ]
    assert model.batch_sizes == [4, 4, 2]
    assert [shape[0] for shape in rows] == [4, 4, 2]


def test_a_disk_that_fails_is_a_fault_that_names_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception would leave the other ranks waiting."""
    path = write_classified(tmp_path / "a.tar", 3, num_classes=3)
    source = open_source(str(path))
    source.read(0)
    path.unlink()

    def broken(number: int, wanted: object = None) -> dict[str, bytes]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(source, "read", broken)
    batches = EvalBatches(
        source, PreprocessConfig(image_size=SIDE), read_value=lambda _: 0, spans=[range(2)]
    )
    faults = batches.batch(0).faults
    assert len(faults) == 2
    assert str(faults[1]).startswith("sample 00001 of ") and faults[1].reason == "the disk is gone"
    assert not faults[1].is_bad_sample


def test_features_are_of_unit_norm_in_fp32_whatever_the_precision(tmp_path: Path) -> None:
    source = open_source(str(write_classified(tmp_path / "a.tar", 5, num_classes=3)))
    for precision in ("fp32", "bf16"):
        encoder = make_encoder(precision=precision)
        for _, features in encoded_batches(encoder, source, lambda members: None):
            assert features.dtype == torch.float32
            norms = torch.linalg.vector_norm(features, dim=1)
            assert torch.allclose(norms, torch.ones(len(features)), atol=1e-6)
