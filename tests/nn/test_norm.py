"""Norms against torch's, transformers' Llama and Gemma, and the formula of the paper."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmtrain.nn import build_norm


class Operations(TorchDispatchMode):
    """Counts what is computed within it; views are free."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.number += not func.is_view
        return made


DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def filled(norm: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


def test_layer_norm_is_torchs_with_and_without_bias():
    for bias in (True, False):
        norm = build_norm("layer", 12, eps=1e-3, bias=bias)
        assert isinstance(norm, torch.nn.LayerNorm) and norm.eps == 1e-3
        assert (norm.bias is not None) == bias


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_equals_llamas(dtype):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    ours, theirs = filled(build_norm("rms", 12, eps=1e-5)), LlamaRMSNorm(12, eps=1e-5)
    theirs.load_state_dict(ours.state_dict())
    x = 3 * torch.randn(2, 5, 12).to(dtype)
    got, want = ours.to(dtype)(x), theirs.to(dtype)(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gemma_norm_equals_gemmas(dtype):
    """(1 + weight) in fp32 before the cast: in bf16 bit for bit."""
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    ours, theirs = filled(build_norm("gemma_rms", 12, eps=1e-6)), GemmaRMSNorm(12, eps=1e-6)
    theirs.load_state_dict(ours.state_dict())
    x = 3 * torch.randn(2, 5, 12).to(dtype)
    got, want = ours.to(dtype)(x), theirs.to(dtype)(x)
    assert got.dtype == dtype
    if dtype == torch.bfloat16:
        assert torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("dim", "fraction", "measured"), [(32, 0.0625, 2), (100, 0.07, 7), (5, 0.3, 2)]
)
def test_partial_rms_norm_measures_the_first_features(dim, fraction, measured):
    norm = filled(build_norm("partial_rms", dim, eps=1e-6, fraction=fraction)).double()
    x = torch.randn(2, 5, dim, dtype=torch.float64)
    rms = (x[..., :measured].square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), x / rms * norm.weight)
    whole = build_norm("rms", dim, eps=1e-6).double()
    whole.load_state_dict(norm.state_dict())
    all_of_it = build_norm("partial_rms", dim, eps=1e-6, fraction=1.0).double()
    all_of_it.load_state_dict(norm.state_dict())
    torch.testing.assert_close(all_of_it(x), whole(x))


def test_partial_rms_norm_measures_in_fp32():
    """The sum of squares of bf16 features, of which 300 times the same is lost in bf16."""
    norm = build_norm("partial_rms", 600, eps=0.0, fraction=0.5).bfloat16()
    x = torch.full((1, 600), 1.0, dtype=torch.bfloat16)
    assert torch.equal(norm(x), x)


@pytest.mark.parametrize("shape", [(2, 5, 12), (3, 2, 4, 6), (0, 3, 12)])
@pytest.mark.parametrize("kind", ["rms", "gemma_rms"])
def test_the_gradients_of_an_rms_norm_are_those_of_its_formula(kind, shape):
    norm = filled(build_norm(kind, shape[-1], eps=1e-3)).double()
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: functional_call(norm, {"weight": w}, (x,)),
        (
            x,
            norm.weight,
        ),
    )
    scale = norm.weight + (kind == "gemma_rms")
    want = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * scale
    got = norm(x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(x)
    for ours, theirs in zip(
        torch.autograd.grad(got, [x, norm.weight], gradient),
        torch.autograd.grad(want, [x, norm.weight], gradient),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("in_autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_an_rms_norm_trains_as_exactly_as_torchs(dtype, weight_dtype, in_autocast):
    """Wherever backward is called, and whatever the formats: against fp64."""
    norm = filled(build_norm("rms", 64, eps=1e-6)).to(weight_dtype)
    x = (3 * torch.randn(40, 64)).to(dtype).requires_grad_()
    gradient = torch.randn(40, 64).to(dtype)

    def differences(y, wide):
        inputs = [x, norm.weight]
        return [
            (found.double() - exact).abs().max()
            for found, exact in zip(torch.autograd.grad(y, inputs, gradient), wide, strict=True)
        ]

    exact_x, exact_w = (t.detach().double().requires_grad_() for t in (x, norm.weight))
    exact = F.rms_norm(exact_x, (64,), exact_w, 1e-6)
    wide = torch.autograd.grad(exact, [exact_x, exact_w], gradient.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=in_autocast):
        ours = norm(x)
        assert ours.dtype == dtype
        found = differences(ours, wide)
    theirs = differences(F.rms_norm(x, (64,), norm.weight.to(dtype), 1e-6), wide)
    for one, other in zip(found, theirs, strict=True):
        assert one <= 1.5 * other + 1e-6


def test_a_frozen_rms_norm_passes_gradients_on():
    norm = filled(build_norm("rms", 8, eps=1e-6)).requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    (ours,) = torch.autograd.grad(norm(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(F.rms_norm(x, (8,), norm.weight, 1e-6).square().sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_a_second_derivative_is_an_error_and_no_wrong_number():
    norm, x = filled(build_norm("rms", 8, eps=1e-6)), torch.randn(3, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_an_rms_norm_takes_few_operations_both_ways():
    norm, x = filled(build_norm("rms", 8, eps=1e-6)), torch.randn(3, 8, requires_grad=True)
    with Operations() as counted:
        norm(x).backward(torch.ones(3, 8))
    assert counted.number <= 17  # 23 by F.rms_norm


@pytest.mark.parametrize("kind", ["layer", "rms", "partial_rms", "gemma_rms"])
def test_every_norm_starts_as_the_identity_scale(kind):
    norm = filled(build_norm(kind, 8, eps=1e-6))
    norm.reset_parameters()
    x = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]])
    torch.testing.assert_close(norm(x), x)


def test_unknown_kind_and_fraction_are_refused():
    with pytest.raises(ValueError, match='norm = "batch" is unknown'):
        build_norm("batch", 8, eps=1e-6)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"norm_fraction = 0\.0"):
        build_norm("partial_rms", 8, eps=1e-6, fraction=0.0)
