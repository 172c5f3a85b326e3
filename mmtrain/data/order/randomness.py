"""Counter-based randomness: a draw is a function of its key, not of what was drawn before.

Every random choice that touches a sample (crop, caption, patch dropout, stochastic depth) is keyed
by (seed, epoch, position, purpose). So two passes, any number of microbatches, workers or ranks,
and a resumed run all see the same choices. The mixing function is SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014); int64 tensors wrap around, which is the arithmetic modulo 2^64 that it needs.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: `>>` on int64 drags the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser over int64 of any shape."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
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
    return _mix(_mix(position_B * _GAMMA + key))


def draws(key_B: Tensor, first: int, num: int) -> Tensor:
    """The draws number `first` to `first + num` of each sample's stream, float64 [B, num]."""
    column_N = torch.arange(first + 1, first + num + 1, device=key_B.device) * _GAMMA
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


def permutation(size: int, *, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """The numbers below `size` in the order of one uniform draw each, int64 [size].

    Equal draws stand in the order of their numbers, so that it is the same on every machine.
    """
    key = np.uint64(stream_key(seed=seed, epoch=epoch, purpose=purpose) % (1 << 64))
    bits = np.arange(size, dtype=np.uint64)
    bits *= _unsigned(_GAMMA)
    bits += key
    _mix_in_place(bits)
    _mix_in_place(bits)
    bits += _unsigned(_GAMMA)  # as the first of the sample's draws
    _mix_in_place(bits)
    bits >>= np.uint64(11)  # what a draw in [0, 1) keeps
    return _argsort(bits)


def _unsigned(value: int) -> np.uint64:
    return np.uint64(value % (1 << 64))


def _mix_in_place(x: np.ndarray) -> None:
    """`_mix` over uint64, without copies."""
    x ^= x >> np.uint64(30)
    x *= _unsigned(_MIX_1)
    x ^= x >> np.uint64(27)
    x *= _unsigned(_MIX_2)
    x ^= x >> np.uint64(31)


def _argsort(bits: np.ndarray) -> np.ndarray:
    """A stable argsort of numbers of 53 bits.

    Sorting plain numbers is many times faster than sorting by them. So each row's number takes the
    low bits, and draws that agree in the bits that are left are put right afterwards.
    """
    width = np.uint64(max(1, (bits.size - 1).bit_length()))
    lost = max(0, int(width) - 11)
    packed = bits >> np.uint64(lost)
    packed <<= width
    packed |= np.arange(bits.size, dtype=np.uint64)
    packed.sort()
    high = packed >> width
    packed &= (np.uint64(1) << width) - np.uint64(1)
    order = packed.view(np.int64)
    same = high[1:] == high[:-1]
    if lost and same.any():
        tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
        rows = order[tied]
        order[tied] = rows[np.lexsort((rows, bits[rows]))]
    return order
