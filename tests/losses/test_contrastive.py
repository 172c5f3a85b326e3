"""What holds for all losses of a batch: values and gradients equal the formulas."""

import pytest
import torch

from mmtrain.losses import _blocks, clip_loss, siglip_loss
from tests.losses.reference import (
    LABELS,
    Case,
    assert_near,
    assert_same_result,
    gradients,
    inputs,
)

KINDS = pytest.mark.parametrize("kind", ["clip", "siglip", "affinity"])
WITH_LABELS = pytest.mark.parametrize("kind", ["clip", "siglip"])
POSITIVES = pytest.mark.parametrize("positives", ["attract", "ignore"])


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 4 x 5, so that a few rows already make ragged rows and columns of blocks."""
    monkeypatch.setattr(_blocks, "block_shape", lambda rows, columns, device: (4, 5))


@WITH_LABELS
@POSITIVES
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("num_rows", [1, 3, 13, 16])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_formula(kind, positives, labels, num_rows, padded, small_blocks):
    valid = torch.arange(num_rows) % 3 != 1 if padded else None
    case = Case(kind=kind, positives=positives, labels=LABELS[labels](num_rows), valid=valid)
    assert_same_result(case, inputs(num_rows), 1e-12)
    assert_same_result(case, inputs(num_rows, dtype=torch.float32), 1e-5)


@WITH_LABELS
@POSITIVES
def test_equals_the_formula_with_the_real_blocks(kind, positives):
    num_rows = 1100
    case = Case(kind=kind, positives=positives, labels=torch.arange(num_rows) % 700 - 1)
    assert_same_result(case, inputs(num_rows, dim=32), 1e-12)
    assert_same_result(case, inputs(num_rows, dim=32, dtype=torch.float32), 1e-5)


@KINDS
def test_no_range_of_logits_is_lost(kind, small_blocks):
    """Logits from -300 to 300; one text and one image are far from all others, so that their
    column and row lie 600 below the block's largest logit."""
    image, text, _, bias = inputs(11, dtype=torch.float32)
    direction = torch.eye(5)[0]
    with torch.no_grad():
        image.copy_(torch.nn.functional.normalize(direction + 0.1 * image, dim=-1))
        text.copy_(torch.nn.functional.normalize(direction + 0.1 * text, dim=-1))
        text[3], image[8] = -direction, -direction
    for scale in (0.0, 300.0):
        leaves = (image, text, torch.tensor(scale, requires_grad=True), bias)
        # A logit of 300 is rounded by up to 1.5e-5, which moves its exponential by as much.
        assert_same_result(Case(kind=kind), leaves, 5e-5)


@KINDS
def test_padding_cannot_leak(kind, small_blocks):
    image, text, scale, bias = inputs(9)
    valid = torch.tensor([True] * 7 + [False] * 2)
    labels = torch.tensor([0, 1, 0, 2, -1, 2, 3, 0, 3])
    want = Case(kind=kind, labels=labels[:7]).ours(image[:7], text[:7], scale, bias)
    with torch.no_grad():
        image[7:], text[7:] = torch.nan, torch.inf
    got = Case(kind=kind, labels=labels, valid=valid).ours(image, text, scale, bias)
    assert_near(got, want, 1e-12, "loss")
    for grad in gradients(got, (image, text)):
        assert torch.isfinite(grad).all()
        assert not grad[7:].any()


@KINDS
def test_nothing_valid_is_zero(kind):
    leaves = inputs(4)
    loss = Case(kind=kind, valid=torch.zeros(4, dtype=torch.bool)).ours(*leaves)
    assert loss == 0
    assert not any(grad.any() for grad in gradients(loss, leaves))


@KINDS
def test_is_fp32_under_autocast(kind):
    leaves = inputs(33, dtype=torch.float32)
    case = Case(kind=kind, labels=torch.arange(33) // 2)
    want = case.ours(*leaves)
    wanted = gradients(want, leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = case.ours(*leaves)
        grads = gradients(got, leaves)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    for ours, full in zip(grads, wanted, strict=True):
        assert torch.equal(ours, full)


@KINDS
def test_narrow_features_are_widened(kind):
    image, text, scale, bias = inputs(33, dtype=torch.bfloat16)
    case = Case(kind=kind)
    got = case.ours(image, text, scale, bias)
    want = case.ours(image.float(), text.float(), scale.float(), bias.float())
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert gradients(got, (image,))[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (kind, wanted)
        for kind, num in (("clip", 3), ("siglip", 4), ("affinity", 3))
        for wanted in range(num)
    ],
)
@POSITIVES
def test_one_input_alone_can_want_a_gradient(kind, positives, wanted, small_blocks):
    leaves = inputs(7)
    case = Case(kind=kind, positives=positives, labels=LABELS["mixed"](7))
    full = gradients(case.ours(*leaves), leaves)[wanted]
    alone = tuple(x.detach().requires_grad_(i == wanted) for i, x in enumerate(leaves))
    case.ours(*alone).mul(1.5).backward()
    assert torch.equal(alone[wanted].grad, full)
    assert all(x.grad is None for i, x in enumerate(alone) if i != wanted)


@KINDS
def test_plain_numbers_serve_as_scale_and_bias(kind):
    image, text, scale, bias = inputs(5)
    case = Case(kind=kind)
    got = case.ours(image, text, scale.item(), bias.item())
    assert torch.equal(got, case.ours(image, text, scale, bias))
    assert torch.equal(got, case.ours(image, text, scale.reshape(1), bias.reshape(1)))


@KINDS
def test_is_differentiable_only_once(kind):
    image, *others = inputs(5)
    weighted = Case(kind=kind).ours(image, *others) * others[1]
    grad = torch.autograd.grad(weighted, image, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_BE": torch.ones(3, 4)}, r"image_BE \(2, 4\) and text_BE \(3, 4\) must be equal"),
        ({"image_BE": torch.ones(2), "text_BE": torch.ones(2)}, "2-D"),
        ({"image_BE": torch.ones(0, 4), "text_BE": torch.ones(0, 4)}, "not empty"),
        ({"image_BE": torch.ones(2, 4, dtype=torch.int64)}, "give floats"),
        ({"labels_B": torch.ones(2)}, r"labels_B is torch.float32 \[2\]; give torch.int64 \[2\]"),
        ({"labels_B": torch.ones(3, dtype=torch.int64)}, r"labels_B is torch.int64 \[3\]"),
        ({"valid_B": torch.ones(2)}, r"valid_B is torch.float32 \[2\]; give torch.bool \[2\]"),
        ({"positives": "repel"}, 'positives = \'repel\' is not known; use "attract" or "ignore"'),
        ({"logit_scale": torch.ones(2)}, r"logit_scale has shape \(2,\); give one number"),
    ],
)
def test_misuse_is_named(changed, message):
    arguments = {"image_BE": torch.ones(2, 4), "text_BE": torch.ones(2, 4), "logit_scale": 1.0}
    with pytest.raises(ValueError, match=message):
        clip_loss(**(arguments | changed))
    with pytest.raises(ValueError, match=message):
        siglip_loss(**(arguments | {"logit_bias": 0.0} | changed))
