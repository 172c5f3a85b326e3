"""Norms against torch's, transformers' Llama and Gemma, and the formula of the paper."""

import pytest
import torch

from mmtrain.nn import build_norm

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
