"""Muon against Newton-Schulz written out in fp64, and against torch's own."""

import math

import pytest
import torch

from mmtrain.optim.muon import Muon, orthogonalize


def newton_schulz(x):
    """One fp64 matrix, as in Jordan et al. 2024; a wide matrix iterates on its smaller side."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x.double()
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(12, 12), (12, 20), (8, 40), (40, 8), (1, 5)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_orthogonalize(shape, dtype, error):
    torch.manual_seed(0)
    x_MRC = torch.randn(3, *shape, dtype=dtype)
    got_MRC = orthogonalize(x_MRC, dtype=dtype)
    for got, x in zip(got_MRC, x_MRC, strict=True):
        assert (got.double() - newton_schulz(x)).abs().max() < error


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_and_zero_matrices_stay_finite(rank):
    """The Gram form squares the condition number; rounding must not blow up in the null space."""
    torch.manual_seed(0)
    x_MRC = torch.randn(2, 16, rank) @ torch.randn(2, rank, 64)
    x_MRC[1] = 0
    got_MRC = orthogonalize(x_MRC, dtype=torch.float32)
    assert (got_MRC[0].double() - newton_schulz(x_MRC[0])).abs().max() < 1e-4
    assert got_MRC[1].abs().max() == 0


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_steps(adjust):
    torch.manual_seed(0)
    shapes = [(12, 8), (8, 12), (12, 8), (10, 10)]
    parameters = [torch.nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in shapes]
    expected = [p.detach().clone() for p in parameters]
    momenta = [torch.zeros_like(p) for p in expected]
    muon = Muon([{"params": parameters}], lr=0.1, momentum=0.9, weight_decay=0.3, adjust=adjust)
    for step in range(3):
        for i, (rows, columns) in enumerate(shapes):
            gradient = torch.randn(rows, columns, dtype=torch.float64)
            parameters[i].grad = gradient if (step, i) != (1, 3) else None
            if parameters[i].grad is None:
                continue
            momenta[i] = 0.9 * momenta[i] + 0.1 * gradient
            update = newton_schulz(0.1 * gradient + 0.9 * momenta[i])
            scale = {
                "original": math.sqrt(max(1, rows / columns)),
                "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)),
            }[adjust]
            expected[i] = expected[i] * (1 - 0.1 * 0.3) - 0.1 * scale * update
        muon.step()
    for got, want in zip(parameters, expected, strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=1e-10, atol=1e-10)


def test_agrees_with_torch_but_for_bf16():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(16, 24)) for _ in range(2)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    for p, q in zip(ours, theirs, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    Muon([{"params": ours}], lr=0.02, weight_decay=0.1).step()
    torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1).step()
    for p, q in zip(ours, theirs, strict=True):
        assert (p - q).abs().max() < 0.02 * 0.02


@pytest.mark.parametrize("in_bf16", [False, True])
def test_products_are_in_bf16_where_a_cpu_is_told_so(in_bf16):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(s)) for s in [(12, 20), (20, 12), (8, 8)]]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    expected = [newton_schulz(p.grad) for p in parameters]
    Muon([{"params": parameters}], lr=1.0, momentum=0.0, bf16_products=in_bf16).step()
    for got, want in zip(parameters, expected, strict=True):
        scale = math.sqrt(max(1, got.shape[0] / got.shape[1]))
        error = (got / -scale - want).abs().max()
        assert error < (0.03 if in_bf16 else 2e-5)
        assert (error > 1e-4) == in_bf16
