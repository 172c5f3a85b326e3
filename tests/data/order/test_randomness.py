"""Counter-based draws: SplitMix64 by plain integers, independent streams, fairness."""

import hashlib

import pytest
import torch

from mmtrain.data.order.randomness import stream_key, uniform

_WORD = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def mixed(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _WORD
    return x ^ x >> 31


def test_splitmix64_by_its_published_numbers():
    """The first outputs for the seed 1234567, as in the reference code of its authors."""
    outputs = [mixed((1234567 + (i + 1) * _GAMMA) & _WORD) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_equal_plain_integers():
    digest = hashlib.blake2b(b"7/3/crop", digest_size=8).digest()
    key = int.from_bytes(digest, "little")
    assert stream_key(seed=7, epoch=3, purpose="crop") % (1 << 64) == key
    positions = [0, 1, -1, 12345678901, (1 << 62) + 5]
    drawn = uniform(seed=7, epoch=3, position_B=positions, purpose="crop", num=4)
    for position, row in zip(positions, drawn.tolist(), strict=True):
        state = mixed(mixed((position * _GAMMA + key) & _WORD))
        expected = [(mixed((state + (i + 1) * _GAMMA) & _WORD) >> 11) * 2.0**-53 for i in range(4)]
        assert row == expected


def test_a_row_depends_on_its_position_alone():
    whole = uniform(seed=1, epoch=0, position_B=range(50), purpose="x", num=6)
    some = uniform(seed=1, epoch=0, position_B=torch.tensor([40, 3, 17]), purpose="x", num=6)
    assert torch.equal(some, whole[[40, 3, 17]])
    fewer = uniform(seed=1, epoch=0, position_B=range(50), purpose="x", num=2)
    assert torch.equal(fewer, whole[:, :2])


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 1}, {"purpose": "y"}])
def test_streams_have_nothing_in_common(change):
    key = {"seed": 1, "epoch": 0, "purpose": "x"}
    one = uniform(**key, position_B=range(2000), num=1)[:, 0]
    other = uniform(**key | change, position_B=range(2000), num=1)[:, 0]
    assert not torch.isin(one, other).any()
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1].item()) < 0.1


def test_draws_are_fair():
    drawn = uniform(seed=0, epoch=0, position_B=range(20_000), purpose="fair", num=4)
    assert drawn.dtype == torch.float64
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = torch.histc(drawn, bins=64, min=0, max=1)
    expected = drawn.numel() / 64
    # Chi square with 63 degrees of freedom is under 120 but for 1 seed in 50,000.
    assert ((counts - expected) ** 2 / expected).sum() < 120
    columns = torch.corrcoef(drawn.T) - torch.eye(4)
    assert columns.abs().max() < 0.03
    neighbours = torch.corrcoef(torch.stack([drawn[:-1, 0], drawn[1:, 0]]))[0, 1]
    assert neighbours.abs() < 0.03
