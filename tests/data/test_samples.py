"""One sample: captions by weight, labels, pixels, and the reason where one cannot be used."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmtrain.data.images.transforms import (
    AugmentConfig,
    PreprocessConfig,
    TrainTransform,
)
from mmtrain.data.members import label_of
from mmtrain.data.sample_error import SampleError
from mmtrain.data.samples import SampleReader
from mmtrain.data.shards.source import ShardSource
from mmtrain.eval.samples import decode_sample
from tests.data.shard_files import encoded, picture, write_shard

PNG = encoded(picture((20, 16)), "PNG")
PIXELS = np.array(Image.open(io.BytesIO(PNG)))
PREPROCESS = PreprocessConfig(image_size=8)
TRANSFORM = TrainTransform(PREPROCESS, AugmentConfig())
DRAWS = torch.full((TrainTransform.num_draws,), 0.5, dtype=torch.float64)


def reader(tmp_path, *files, **options) -> SampleReader:
    """A reader of a fresh shard with these samples, named 0, 1, ..."""
    path = write_shard(tmp_path / "s.tar", [(str(i), each) for i, each in enumerate(files)])
    options = {"captions": {"txt": 1.0}, "transform": TRANSFORM} | options
    return SampleReader(ShardSource(str(path)), **options)


def read(own: SampleReader, sample: int = 0, draws=(0.0, 0.0)):
    return own.read(sample, caption_draws=draws, transform_draws=DRAWS)


def test_a_whole_sample(tmp_path):
    fields = {"concept": "dog", "names": ["a dog", "", 7, "dogs"], "n": 3}
    own = reader(
        tmp_path,
        {"png": PNG, "txt": " a dog\n", "json": fields},
        captions={"txt": 1.0, "names": 1.0},
        label_key="concept",
    )
    sample = read(own)
    assert torch.equal(sample.pixels_CHW, TRANSFORM(PIXELS, DRAWS))
    assert sample.key == "0"
    assert sample.label == label_of("dog")
    assert sample.meta.fields == fields
    assert sample.meta.captions == (" a dog\n", "a dog", "dogs")


def test_training_pixels_follow_their_draws(tmp_path):
    transform = TrainTransform(PREPROCESS, AugmentConfig(crop_scale=(0.2, 0.9)))
    own = reader(tmp_path, {"png": PNG, "txt": "x"}, transform=transform)
    pixels = np.array(Image.open(io.BytesIO(PNG)))
    assert torch.equal(read(own).pixels_CHW, transform(pixels, DRAWS))


def test_without_a_transform_images_are_judged_and_let_go(tmp_path):
    own = reader(tmp_path, {"png": PNG, "txt": "x"}, {"png": PNG[:90], "txt": "x"}, transform=None)
    assert read(own).pixels_CHW.numel() == 0
    with pytest.raises(SampleError, match="image truncated"):
        read(own, 1)


BMP = encoded(picture((20, 16)), "BMP")


@pytest.mark.parametrize(
    ("files", "image_key"),
    [
        ({"bmp": BMP}, None),
        ({"jpg": PNG}, None),  # told by its content
        ({"picture": BMP, "cls": b"3"}, None),
        ({"seg.png": PNG[:40], "photo.bin": BMP, "npy": b"no image"}, "photo.bin"),
        ({"jpg": PNG[:40], "second": BMP}, "second"),
        ({"jpg": PNG[:40], "png": PNG}, "png"),
    ],
)
def test_the_image_is_found_by_extension_content_or_image_key(tmp_path, files, image_key):
    path = write_shard(tmp_path / "s.tar", [("0", files | {"txt": "x"})])
    source = ShardSource(str(path), image_key=image_key)
    own = SampleReader(source, captions={"txt": 1.0}, transform=TRANSFORM)
    assert torch.equal(read(own).pixels_CHW, TRANSFORM(PIXELS, DRAWS))
    assert decode_sample(source.read(0)).size == (20, 16)


def test_two_images_of_unknown_extensions_are_refused_by_name(tmp_path):
    own = reader(tmp_path, {"left": BMP, "right": PNG, "txt": "x"})
    with pytest.raises(SampleError, match=r"several images \(.left, .right\); name one"):
        read(own)


def test_captions_are_drawn_by_the_weight_of_their_place(tmp_path):
    own = reader(
        tmp_path,
        {"png": PNG, "txt": "t", "json": {"names": ["n0", "n1"], "alt": "a"}},
        {"png": PNG, "txt": "  ", "json": {"names": [], "alt": "a"}},
        {"png": PNG, "json": {"names": ["n0"], "alt": None}},
        {"png": PNG, "txt": "t", "json": {"alt": "a"}},
        captions={"txt": 1.0, "names": 2.0, "alt": 1.0},
    )
    grid = [(i / 40 + 1 / 80, j / 4 + 1 / 8) for i in range(40) for j in range(4)]
    found = [read(own, draws=draws).caption for draws in grid]
    counts = {caption: found.count(caption) for caption in sorted(set(found))}
    assert counts == {"a": 40, "n0": 40, "n1": 40, "t": 40}
    # A place without a caption leaves its share to the others.
    assert {read(own, 1, draws).caption for draws in grid} == {"a"}
    assert {read(own, 2, draws).caption for draws in grid} == {"n0"}
    shared = [read(own, 3, draws).caption for draws in grid]
    assert (shared.count("a"), shared.count("t")) == (80, 80)
    assert read(own, draws=(1 - 2**-53, 1 - 2**-53)).caption == "t"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"txt": "x"}, "no image"),
        ({"png": PNG}, "no caption"),
        ({"png": PNG, "txt": " \n"}, "no caption"),
        ({"png": PNG, "txt": b"\xff\xfe"}, "caption is no UTF-8"),
        ({"png": PNG, "txt": "x", "json": "{"}, "json invalid"),
        ({"png": PNG, "txt": "x", "json": "[1]"}, "json invalid"),
        ({"png": PNG, "txt": "x", "json": "[" * 100_000}, "json invalid"),
        ({"png": PNG[:90], "txt": "x"}, "image truncated"),
        ({"png": b"GIF89a", "txt": "x"}, "no image that Pillow reads"),
    ],
)
def test_why_a_sample_cannot_be_used(tmp_path, files, reason):
    with pytest.raises(SampleError, match=f"^{reason}"):
        read(reader(tmp_path, files, label_key="concept"))


def test_an_image_too_large(tmp_path):
    with pytest.raises(SampleError, match="image too large"):
        read(reader(tmp_path, {"png": PNG, "txt": "x"}, max_pixels=20 * 16 - 1))


def test_only_what_is_wanted_is_read(tmp_path, monkeypatch):
    asked = []
    files = {"png": PNG, "txt": "x", "json": {"a": "b"}, "npy": b"n"}
    for number, options in enumerate(
        (
            {},
            {"captions": {}},
            {"captions": {"a": 1.0}},
            {"label_key": "a"},
            {"captions": {}, "keep_fields": True},
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        own = reader(folder, files, **options)
        source_read = own.source.read
        monkeypatch.setattr(
            own.source,
            "read",
            lambda sample, wanted, source_read=source_read: (
                asked.append(source_read(sample, wanted).keys() - {"png"})
                or source_read(sample, wanted)
            ),
        )
        read(own)
    assert asked == [{"txt"}, set(), {"json"}, {"txt", "json"}, {"json"}]


def test_labels_are_the_same_everywhere():
    assert label_of(None) == -1
    assert label_of("dog") == label_of("dog") == 5750585903842312732
    assert label_of({"b": 1, "a": 2}) == label_of({"a": 2, "b": 1})
    values = ["dog", "cat", 1, 1.5, True, 0, [1], "1x", "\ud800"]
    labels = {label_of(value) for value in values}
    assert len(labels) == len(values)
    assert all(0 <= label < 1 << 63 for label in labels)


@pytest.mark.parametrize("form", ["null", "NaN", '""', '" \\t"', '"nan"', '"NULL"', '"None"', "[]"])
def test_no_label_is_no_label(tmp_path, form):
    """Else all samples without one would be of one concept, and attract each other."""
    own = reader(
        tmp_path,
        {"png": PNG, "txt": "x", "json": f'{{"concept": {form}}}'},
        {"png": PNG, "txt": "x", "json": '{"concept": 3.0}'},
        label_key="concept",
    )
    assert read(own).label == -1 and not own.has_label(0)
    assert read(own, 1).label == label_of(3) == label_of("3") and own.has_label(1)


def test_what_a_sample_has(tmp_path):
    own = reader(
        tmp_path,
        {"png": PNG, "json": {"url": "u", "alt": "a"}},
        {"png": PNG, "json": "{"},
        {"png": PNG},
        label_key="alt",
    )
    assert own.describe(0) == "sample 0 has .png, .json and in its .json: url, alt"
    assert own.describe(1) == "sample 1 has .png, .json and in its .json: json invalid"
    assert own.describe(2) == "sample 2 has .png"
    assert [own.has_label(i) for i in range(3)] == [True, False, False]
