"""Rotary positions: transformers' Llama, complex multiplication, and what they are for."""

import pytest
import torch

from mmtrain.nn import apply_rope, rope_1d, rope_2d

H = 16


def test_equal_to_transformers_llama():
    from transformers.models.llama.modeling_llama import (
        LlamaConfig,
        LlamaRotaryEmbedding,
        apply_rotary_pos_emb,
    )

    config = LlamaConfig(
        hidden_size=4 * H,
        num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    position = torch.tensor([[0, 1, 5, 900], [3, 4, 5, 6]])
    x = torch.randn(2, 4, 4, H, generator=torch.Generator().manual_seed(0))
    cos, sin = LlamaRotaryEmbedding(config)(x, position)
    want, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)
    got = apply_rope(x, rope_1d(position, H, theta=5000.0))
    torch.testing.assert_close(got, want.transpose(1, 2), rtol=1e-6, atol=1e-6)


def test_equal_to_rotation_of_complex_numbers():
    """Eq. 34: feature i and i + H/2 are one number, turned by position * theta^(-2i/H)."""
    position = torch.tensor([0.0, 1.0, 7.0])
    x = torch.randn(1, 3, 1, H, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    number = torch.complex(x[..., : H // 2], x[..., H // 2 :])
    frequency = 100.0 ** (-torch.arange(H // 2, dtype=torch.float64) * 2 / H)
    angle = (position[:, None] * frequency)[None, :, None]
    turned = number * torch.polar(torch.ones_like(angle), angle)
    want = torch.cat([turned.real, turned.imag], -1)
    got = apply_rope(x, rope_1d(position, H, theta=100.0))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def scores(q, k, tables):
    rotated_q, rotated_k = (apply_rope(x, tables) for x in (q, k))
    return torch.einsum("btnh,bsnh->bnts", rotated_q, rotated_k)


def test_scores_depend_on_the_distance_alone():
    """One query and key vector at all places: equal distances, equal scores; moved, unchanged."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, H, generator=generator).expand(1, 9, 1, H) for _ in range(2))
    near = scores(q, k, rope_1d(torch.arange(9), H))[0, 0]
    far = scores(q, k, rope_1d(torch.arange(9) + 50, H))[0, 0]
    torch.testing.assert_close(near, far, rtol=0, atol=1e-4)
    for t in range(8):
        torch.testing.assert_close(near[t, t + 1], near[0, 1], rtol=0, atol=1e-4)
    assert (near[0] - near[0, 0]).abs()[1:].min() > 1e-2


def test_two_dimensions_depend_on_both_distances_and_tell_them_apart():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, H, generator=generator).expand(1, 9, 1, H) for _ in range(2))
    row, column = torch.arange(9) // 3, torch.arange(9) % 3
    near = scores(q, k, rope_2d(row, column, H))[0, 0].view(3, 3, 3, 3)
    moved = scores(q, k, rope_2d(row + 7, column + 2, H))[0, 0].view(3, 3, 3, 3)
    torch.testing.assert_close(near, moved, rtol=0, atol=1e-4)
    torch.testing.assert_close(near[0, 0, 1, 2], near[1, 0, 2, 2], rtol=0, atol=1e-4)
    assert abs(near[0, 0, 0, 1] - near[0, 0, 1, 0]) > 1e-2, "a row is not a column"


def test_half_of_the_features_turn_with_each_axis():
    """The axial form: a row's step leaves the column's features alone."""
    here = rope_2d(torch.tensor([1]), torch.tensor([2]), H)[0][0]
    below = rope_2d(torch.tensor([5]), torch.tensor([2]), H)[0][0]
    same = torch.isclose(here, below)
    assert same.view(2, 2, H // 4).all(-1).tolist() == [[False, True], [False, True]]
    frequency = 100.0 ** (-torch.arange(H // 4) * 4 / H)
    torch.testing.assert_close(below[: H // 4], (5 * frequency).cos())


def test_lengths_are_kept_and_so_is_the_dtype():
    x = torch.randn(2, 5, 3, H)
    table = rope_1d(torch.arange(5), H)
    torch.testing.assert_close(apply_rope(x, table).norm(dim=-1), x.norm(dim=-1))
    assert apply_rope(x.bfloat16(), table).dtype == torch.bfloat16
    # Position 0 is not turned.
    assert torch.equal(apply_rope(x, table)[:, 0], x[:, 0])


def test_head_sizes_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="head_dim = 7 must be even"):
        rope_1d(torch.arange(2), 7)
    with pytest.raises(ValueError, match="head_dim = 6 must be a multiple of 4"):
        rope_2d(torch.arange(2), torch.arange(2), 6)


@pytest.mark.parametrize("shape", [(5,), (2, 5)])
def test_gradient_is_the_rotation_back(shape: tuple[int, ...]) -> None:
    """By finite differences, for tables of a batch and of each row."""
    position = torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(0))
    table = tuple(part.double() for part in rope_1d(position, 6))
    x = torch.randn(2, 5, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x: apply_rope(x, table), x.requires_grad_())
