"""Counter-based randomness: a draw is a function of its key, not of what was drawn before.

Every random choice that touches a sample (crop, caption, patch dropout, stochastic depth) is keyed
by (seed, epoch, position, purpose). So two passes, any number of microbatches, workers or ranks,
and a resumed run all see the same choices. The mixing function is SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014); int64 tensors wrap around, which is the arithmetic modulo 2^64 that it needs.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)
"""SplitMix64's three numbers, as int64."""


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: `>>` on int64 drags the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser over int64 of any shape."""
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def stream_key(*, seed: int, epoch: int, purpose: str) -> int:
    """A signed 64-bit key for one stream of draws, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def sample_keys(
    *, seed: int, epoch: int, position_B: Tensor | Sequence[int], purpose: str
) -> Tensor:
    """An int64 key [B] of each sample, from which `draws` draws; arguments as in `uniform`."""
    position_B = torch.as_tensor(position_B, dtype=torch.int64)
    key = stream_key(seed=seed, epoch=epoch, purpose=purpose)
    return _mix(_mix(position_B * GAMMA + key))


def draws(key_B: Tensor, first: int, num: int) -> Tensor:
    """The draws number `first` to `first + num` of each sample's stream, float64 [B, num]."""
    column_N = torch.arange(first + 1, first + num + 1, device=key_B.device) * GAMMA
    bits_BN = _mix(key_B[:, None] + column_N)
    return _shift_right(bits_BN, 11).double() * 2.0**-53


def uniform(
    *, seed: int, epoch: int, position_B: Tensor | Sequence[int], purpose: str, num: int
) -> Tensor:
    """Uniform draws in [0, 1) for each sample.

    Args:
        seed: the run's seed.
        epoch: the epoch (or step) the choice belongs to.
        position_B: the samples' positions in the run's order.
        purpose: what the draws are for; different purposes are independent streams.
        num: draws per sample.

    Returns:
        float64 [B, num] on the device of `position_B`; row b depends on position_B[b] alone.
    """
    key_B = sample_keys(seed=seed, epoch=epoch, position_B=position_B, purpose=purpose)
    return draws(key_B, 0, num)
