"""Distillation: what is peculiar to it; the rest stands with the other losses of a batch."""

import pytest
import torch
import torch.nn.functional as F

from mmtrain.losses import _blocks, affinity_loss, feature_loss_B
from tests.losses.reference import Case, assert_near, assert_same_result, gradients, inputs


def ours(image, text, teacher_image, teacher_text, **changed) -> torch.Tensor:
    """The loss with every other argument plain."""
    arguments = {"logit_scale": 4.0, "teacher_logit_scale": 3.0} | changed
    return affinity_loss(
        image, text, teacher_image_BE=teacher_image, teacher_text_BE=teacher_text, **arguments
    )


@pytest.mark.parametrize("num_rows", [1, 3, 13, 16])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_formula(num_rows, padded, monkeypatch):
    monkeypatch.setattr(_blocks, "block_shape", lambda rows, columns, device: (4, 5))
    valid = torch.arange(num_rows) % 3 != 1 if padded else None
    case = Case(kind="affinity", valid=valid)
    assert_same_result(case, inputs(num_rows), 1e-12)
    assert_same_result(case, inputs(num_rows, dtype=torch.float32), 1e-5)


def test_equals_the_formula_with_the_real_blocks():
    case = Case(kind="affinity")
    assert_same_result(case, inputs(1100, dim=32), 1e-12)
    assert_same_result(case, inputs(1100, dim=32, dtype=torch.float32), 1e-5)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_student_like_its_teacher_has_nothing_to_learn(scale):
    """Its features may be turned as a whole: only the similarities are compared."""
    image, text, _, _ = inputs(50, dim=16)
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    given = {"logit_scale": scale, "teacher_logit_scale": scale}
    loss = ours(image, text, image.detach() @ turn, text.detach() @ turn, **given)
    assert abs(loss) < 1e-12
    for grad in gradients(loss, (image, text)):
        assert grad.abs().max() < 1e-12 * scale
    narrow = [x.detach().float().requires_grad_() for x in (image, text)]
    loss = ours(*narrow, *narrow, **given)
    assert abs(loss) < 1e-5
    assert loss.dtype == torch.float32


def test_the_teacher_receives_no_gradient():
    image, text, scale, teacher_scale = inputs(9)
    teacher = [x.detach().clone().requires_grad_() for x in inputs(9, dim=3)[:2]]
    loss = ours(image, text, *teacher, logit_scale=scale, teacher_logit_scale=teacher_scale)
    loss.backward()
    assert all(x.grad is None for x in (*teacher, teacher_scale))
    assert all(x.grad.any() for x in (image, text, scale))


def test_images_and_texts_may_change_places():
    """Both directions count alike."""
    image, text, _, _ = inputs(9)
    teacher = inputs(9, dim=3)[:2]
    assert_near(ours(text, image, *teacher[::-1]), ours(image, text, *teacher), 1e-14, "loss")


def test_padding_of_the_teacher_cannot_leak():
    image, text, _, _ = inputs(9)
    teacher = [x.detach().clone() for x in inputs(9, dim=3)[:2]]
    want = ours(image[:7], text[:7], *(x[:7] for x in teacher))
    wanted = gradients(want, (image, text))
    teacher[0][7:], teacher[1][7:] = torch.nan, torch.inf
    got = ours(image, text, *teacher, valid_B=torch.arange(9) < 7)
    assert_near(got, want, 1e-12, "loss")
    for ours_grad, want_grad in zip(gradients(got, (image, text)), wanted, strict=True):
        assert_near(ours_grad, want_grad, 1e-12, "gradient")


def test_a_wider_teacher_is_not_narrowed():
    """Any fp64 among the features makes the loss fp64."""
    image, text, _, _ = inputs(9, dtype=torch.float32)
    teacher = inputs(9, dim=3)[:2]
    got = ours(image, text, *teacher)
    assert got.dtype == torch.float64
    assert torch.equal(got, ours(image.double(), text.double(), *teacher))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teacher_text": torch.ones(2, 4)}, r"teacher_image_BE \(2, 3\) and teacher_text_BE \(2"),
        (
            {"teacher_image": torch.ones(5, 3), "teacher_text": torch.ones(5, 3)},
            "teacher_image_BE and teacher_text_BE have 5 rows beside 2",
        ),
        ({"teacher_image": torch.ones(2, 3, dtype=torch.int64)}, "teacher_image_BE torch.int64"),
        ({"teacher_logit_scale": torch.ones(2)}, r"teacher_logit_scale has shape \(2,\)"),
        ({"text": torch.ones(2, 5)}, r"image_BE \(2, 4\) and text_BE \(2, 5\) must be equal"),
        ({"valid_B": torch.ones(2)}, "valid_B is torch.float32"),
    ],
)
def test_misuse_is_named(changed, message):
    x, teacher = torch.ones(2, 4), torch.ones(2, 3)
    features = {"image": x, "text": x, "teacher_image": teacher, "teacher_text": teacher}
    with pytest.raises(ValueError, match=message):
        ours(**(features | changed))


def test_feature_loss_is_two_minus_two_cosines():
    x, teacher = inputs(9)[:2]
    scaled = (3.5 * x).detach().requires_grad_()
    want = 2 - 2 * F.cosine_similarity(scaled, teacher, dim=1)
    got = feature_loss_B(scaled, 0.2 * teacher)
    assert_near(got, want, 1e-14, "loss")
    weight = torch.arange(9.0, dtype=torch.float64)
    (wanted,) = torch.autograd.grad((want * weight).sum(), scaled, retain_graph=True)
    (grad,) = torch.autograd.grad((got * weight).sum(), scaled)
    assert_near(grad, wanted, 1e-13, "gradient")


def test_feature_loss_keeps_small_distances():
    """1e-4 apart in fp32 is 1e-8, of which 2 - 2 cos would see nothing."""
    teacher = torch.tensor([[1.0, 0.0]])
    x = torch.tensor([[1.0, 1e-4]])
    assert feature_loss_B(x, teacher).item() == pytest.approx(1e-8, rel=1e-5)
    assert feature_loss_B(-teacher, teacher).item() == 4


def test_feature_loss_is_fp32_and_leaves_the_teacher_alone():
    x, teacher = (x.bfloat16().detach().requires_grad_() for x in inputs(9)[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_B = feature_loss_B(x, teacher)
    assert loss_B.dtype == torch.float32
    loss_B.sum().backward()
    assert x.grad is not None and x.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("shapes", [((2, 4), (2, 3)), ((2, 4), (1, 4)), ((4,), (4,))])
def test_feature_loss_compares_equal_shapes_only(shapes):
    with pytest.raises(ValueError, match="must be equal and 2-D"):
        feature_loss_B(*(torch.ones(shape) for shape in shapes))
