"""The sigmoid loss of images in parts is the loss of all of them at once."""

import pytest
import torch

from mmtrain.losses import SiglipByParts, _blocks, _gradients, _sigmoid_sums
from tests.losses.reference import (
    LABELS,
    PARTS,
    Case,
    Sizes,
    assert_near,
    assert_same_by_parts,
    by_parts,
    inputs,
)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("positives", ["attract", "ignore"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_whole(parts, positives, labels, padded, monkeypatch):
    monkeypatch.setattr(_blocks, "block_shape", lambda rows, columns, device: (4, 5))
    valid = torch.arange(13) % 3 != 1 if padded else None
    case = Case(kind="siglip", positives=positives, labels=LABELS[labels](13), valid=valid)
    assert_same_by_parts(case, inputs(13), 1e-12, parts=PARTS[parts])
    assert_same_by_parts(case, inputs(13, dtype=torch.float32), 1e-5, parts=PARTS[parts])


def test_equals_the_whole_with_the_real_blocks():
    case = Case(kind="siglip", labels=torch.arange(1300) % 700 - 1)
    assert_same_by_parts(case, inputs(1300, dim=32), 1e-12, parts=[(0, 1100), (1100, 1300)])


def test_adding_a_part_communicates_nothing(monkeypatch):
    """So that ranks may cut their images as they like."""

    def refused(*args, **kwargs):
        raise AssertionError("a collective")

    image, text, scale, bias = (x.detach() for x in inputs(6))
    sums = SiglipByParts(text, logit_scale=scale, logit_bias=bias)
    for where in (_blocks, _sigmoid_sums, _gradients):
        for name in ("gather_together", "scatter_row_sums", "sum_", "require_equal"):
            monkeypatch.setattr(where, name, refused, raising=False)
    sums.add(image[:2], slice(0, 2))
    sums.add(image[2:], slice(2, 6))


def test_padding_cannot_leak():
    image, text, scale, bias = (x.detach() for x in inputs(9))
    valid = torch.arange(9) < 7
    cut = Case(kind="siglip")
    want_image, want = by_parts(cut, image[:7], text[:7], scale, bias, parts=[(0, 4), (4, 7)])
    image[7:], text[7:] = torch.nan, torch.inf
    case = Case(kind="siglip", valid=valid)
    got_image, got = by_parts(case, image, text, scale, bias, parts=[(0, 4), (4, 8), (8, 9)])
    assert_near(got.loss, want.loss, 1e-12, "loss")
    assert_near(got_image[:7], want_image, 1e-12, "gradient of image")
    assert_near(got.text_BE[:7], want.text_BE, 1e-12, "gradient of text")
    assert not got_image[7:].any()
    assert not got.text_BE[7:].any()


def test_is_fp32_under_autocast_and_records_nothing():
    image, text, scale, bias = inputs(33, dtype=torch.float32)
    case, parts = Case(kind="siglip"), [(0, 20), (20, 33)]
    want_image, want = by_parts(case, image.detach(), text.detach(), scale, bias, parts=parts)
    narrow = SiglipByParts(text.detach().bfloat16(), logit_scale=scale, logit_bias=bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got_image, got = by_parts(case, image.detach(), text, scale, bias, parts=parts)
        assert narrow.add(image[:5].bfloat16(), slice(0, 5)).dtype == torch.float32
    assert torch.equal(got_image, want_image)
    for name in ("loss", "text_BE", "logit_scale", "logit_bias"):
        assert torch.equal(getattr(got, name), getattr(want, name))
        assert not getattr(got, name).requires_grad


def test_products_per_block(monkeypatch):
    """Three, as of the whole: no part makes one twice."""
    monkeypatch.setattr(_blocks, "block_shape", lambda *args: (8, 16))
    image, text, scale, bias = (x.detach() for x in inputs(32, dtype=torch.float32))
    with Sizes() as sizes:
        by_parts(Case(kind="siglip"), image, text, scale, bias, parts=[(0, 8), (8, 24), (24, 32)])
    assert sizes.products == 8 * 3


@pytest.mark.parametrize("num_rows", [200, 300])
def test_nothing_is_larger_than_a_block(num_rows, monkeypatch):
    rows, columns, dim = 32, 48, 4
    monkeypatch.setattr(_blocks, "block_shape", lambda *args: (rows, columns))
    leaves = (x.detach() for x in inputs(num_rows, dtype=torch.float32, dim=dim))
    case = Case(kind="siglip", labels=torch.arange(num_rows) % 40)
    with Sizes() as sizes:
        by_parts(case, *leaves, parts=[(0, 90), (90, num_rows)])
    assert sizes.largest <= 4 * max(rows * columns, num_rows * dim)


@pytest.mark.parametrize(
    ("images", "rows", "message"),
    [
        ((3, 5), slice(0, 2), r"image_XE \(3, 5\) does not fit slice\(0, 2, None\) of text_BE"),
        ((2, 4), slice(0, 2), r"image_XE \(2, 4\) does not fit"),
        ((3, 5), slice(5, 8), r"does not fit slice\(5, 8, None\) of text_BE \(6, 5\)"),
        ((2, 5), slice(2, 6, 2), "give consecutive rows"),
        ((0, 5), slice(2, 2), "one image each"),
        ((2, 5), slice(1, 3), "some of rows 1 to 2 have been added before"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(images, rows, message):
    sums = SiglipByParts(torch.ones(6, 5), logit_scale=1.0, logit_bias=0.0)
    sums.add(torch.ones(2, 5), slice(0, 2))
    with pytest.raises(ValueError, match=message):
        sums.add(torch.ones(images), rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_images_of_other_numbers_than_the_texts_are_refused(dtype):
    sums = SiglipByParts(torch.ones(6, 5), logit_scale=1.0, logit_bias=0.0)
    with pytest.raises(ValueError, match=f"image_XE is {dtype}; give floats, no wider than"):
        sums.add(torch.ones(6, 5, dtype=dtype), slice(0, 6))


def test_a_missing_part_and_a_second_end_are_refused():
    sums = SiglipByParts(torch.ones(6, 5), logit_scale=1.0, logit_bias=0.0)
    sums.add(torch.ones(2, 5), slice(0, 2))
    with pytest.raises(ValueError, match="4 of 6 rows have not been added"):
        sums.finish()
    sums.add(torch.ones(4, 5), slice(2, 6))
    sums.finish()
    with pytest.raises(ValueError, match="finish has been called before"):
        sums.finish()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_BE": torch.ones(2)}, r"text_BE \(2,\) must be 2-D and not empty"),
        ({"text_BE": torch.ones(2, 4, dtype=torch.int64)}, "give floats"),
        ({"labels_B": torch.ones(3, dtype=torch.int64)}, r"labels_B is torch.int64 \[3\]"),
        ({"valid_B": torch.ones(2)}, r"valid_B is torch.float32 \[2\]; give torch.bool \[2\]"),
        ({"positives": "repel"}, "positives = 'repel' is not known"),
        ({"logit_bias": torch.ones(2)}, r"logit_bias has shape \(2,\); give one number"),
    ],
)
def test_misuse_is_named(changed, message):
    arguments = {"text_BE": torch.ones(2, 4), "logit_scale": 1.0, "logit_bias": 0.0} | changed
    with pytest.raises(ValueError, match=message):
        SiglipByParts(arguments.pop("text_BE"), **arguments)
