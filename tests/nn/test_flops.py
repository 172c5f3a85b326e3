"""Products counted as they are called, against formulas."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from mmtrain.models import Clip
from mmtrain.models.flops import clip_flops
from mmtrain.models.named import named_model
from mmtrain.nn.flops import FlopCount


@pytest.mark.parametrize(("rows", "inner", "columns"), [(2, 3, 5), (1, 7, 1), (16, 4, 9)])
def test_a_product_and_its_backward(rows, inner, columns):
    x, w = torch.ones(rows, inner, requires_grad=True), torch.ones(inner, columns)
    with FlopCount() as forward:
        y = x @ w
    with FlopCount() as backward:
        y.sum().backward()
    assert forward.total == backward.total == 2 * rows * inner * columns


@pytest.mark.parametrize("length", [5, 33])
def test_fused_attention_has_two_products_and_five_backward(length):
    q, k, v = (torch.ones(2, 3, length, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 3 * length * length * 8
    with FlopCount() as forward:
        out = F.scaled_dot_product_attention(q, k, v)
    with FlopCount() as backward:
        out.sum().backward()
    assert forward.total == 2 * product
    assert backward.total == 5 * product


def test_a_clips_forward_is_what_the_formula_says():
    config = named_model("ViT-S-32")
    with FakeTensorMode(), torch.no_grad():
        clip = Clip(config)
        with FlopCount() as image:
            clip.encode_image(torch.zeros(2, 3, 224, 224, dtype=torch.uint8))
        with FlopCount() as text:
            tokens = torch.zeros(2, 77, dtype=torch.int64)
            clip.text(tokens, length_B=torch.full((2,), 77))
    want = clip_flops(config)
    assert image.total / 2 == pytest.approx(want.image, rel=0.01)
    assert text.total / 2 == pytest.approx(want.text, rel=0.01)
