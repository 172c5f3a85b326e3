"""The logits never exist as a whole."""

import pytest
import torch

from mmtrain.losses import _blocks
from tests.losses.reference import TEACHER_DIM, Case, Sizes, gradients, inputs


@pytest.mark.parametrize(
    ("kind", "positives"),
    [
        ("clip", "attract"),
        ("clip", "ignore"),
        ("siglip", "attract"),
        ("siglip", "ignore"),
        ("affinity", "attract"),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("num_rows", [200, 300])
def test_nothing_is_larger_than_a_block(kind, positives, padded, num_rows, monkeypatch):
    rows, columns, dim = 32, 48, 4
    monkeypatch.setattr(_blocks, "block_shape", lambda *args: (rows, columns))
    valid = torch.arange(num_rows) % 5 > 0 if padded else None
    labels = torch.arange(num_rows) % 40
    case = Case(kind=kind, positives=positives, labels=labels, valid=valid)
    leaves = inputs(num_rows, dtype=torch.float32, dim=dim)
    case.teacher(num_rows)  # kept, so that what it takes is not measured
    with Sizes() as sizes:
        gradients(case.ours(*leaves), leaves)
    assert sizes.largest <= 4 * max(rows * columns, num_rows * max(dim, TEACHER_DIM))


@pytest.mark.parametrize(
    ("kind", "products", "of_loss"), [("clip", 4, 1), ("siglip", 3, 1), ("affinity", 6, 4)]
)
def test_products_per_block(kind, products, of_loss, monkeypatch):
    """Those of the gradients are made only where somebody wants them."""
    monkeypatch.setattr(_blocks, "block_shape", lambda *args: (8, 16))
    leaves = inputs(32, dtype=torch.float32)
    with Sizes() as sizes:
        gradients(Case(kind=kind).ours(*leaves), leaves)
    assert sizes.products == 8 * products
    with Sizes() as sizes, torch.no_grad():
        Case(kind=kind).ours(*leaves)
    assert sizes.products == 8 * of_loss


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 70_000), (100, 6_400), (5_000, 5_000)])
def test_block_shape_is_bounded(device, shape):
    rows, columns = _blocks.block_shape(*shape, torch.device(device))
    assert 1 <= rows <= shape[0]
    assert 1 <= columns <= shape[1]
    assert rows * columns <= {"cpu": 2**20, "cuda": 2**25}[device]
