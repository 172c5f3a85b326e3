"""Images that are there more than once: the same file, or nearly the same picture."""

import hashlib

import numpy as np
from PIL import Image

NEAR = 3
"""Of 64 bits of a picture's hash, how many may differ: another size or compression changes few."""
_BANDS = 4
"""More than NEAR: of two near hashes at least one band of bits is equal."""
_ROWS = 1024
_BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
_PLAIN = 10
"""Bits of a hash that are as the rest are not; with fewer a picture is a shape on plain ground, and
near to many that are unlike it."""


def file_hash(image: bytes) -> int:
    """63 bits of a hash of a file."""
    digest = hashlib.blake2b(image, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def picture_hash(pixels_HWC: np.ndarray) -> int:
    """dHash: whether each of 8 x 8 fields is brighter than its right neighbour.

    Krawetz 2013, "Kind of Like That".
    """
    image = Image.fromarray(pixels_HWC).convert("L").resize((9, 8), Image.Resampling.BOX)
    grey_88 = np.asarray(image, dtype=np.int16)
    bits = grey_88[:, :-1] > grey_88[:, 1:]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def groups_of_files(hash_N: np.ndarray) -> list[np.ndarray]:
    """The samples of each file that is there more than once."""
    return _equal(hash_N)


def groups_of_pictures(hash_N: np.ndarray, *, near: int = NEAR) -> list[np.ndarray]:
    """Samples whose pictures are nearly the same, those with hardly an edge left out.

    A picture belongs to a group if it is near to any of it.

    Args:
        hash_N: uint64 of `picture_hash`.
        near: bits that may differ, less than 4.
    """
    assert near < _BANDS
    num_set_N = _num_bits(hash_N)
    kept = np.flatnonzero(np.minimum(num_set_N, 64 - num_set_N) >= _PLAIN)
    hashes_U, inverse = np.unique(hash_N[kept], return_inverse=True)
    group_U = np.arange(hashes_U.size)
    for first, second in _near_pairs(hashes_U, near):
        _join(group_U, int(first), int(second))
    root_U = np.array([_root(group_U, number) for number in range(group_U.size)], dtype=np.int64)
    return [kept[members] for members in _equal(root_U[inverse])]


def _equal(value_N: np.ndarray) -> list[np.ndarray]:
    if not value_N.size:
        return []
    order = np.argsort(value_N, kind="stable")
    starts = np.flatnonzero(np.diff(value_N[order])) + 1
    return [each for each in np.split(order, starts) if each.size > 1]


def _near_pairs(hashes_U: np.ndarray, near: int) -> list[tuple[int, int]]:
    """Places of unequal hashes of which at most so many bits differ."""
    found: set[tuple[int, int]] = set()
    width = 64 // _BANDS
    for band in range(_BANDS):
        part_U = (hashes_U >> np.uint64(band * width)) & np.uint64((1 << width) - 1)
        for members in _equal(part_U):
            for start in range(0, members.size, _ROWS):
                rows = members[start : start + _ROWS]
                differ = hashes_U[rows][:, None] ^ hashes_U[members][None, :]
                for i, j in np.argwhere(_num_bits(differ) <= near).tolist():
                    if rows[i] < members[j]:
                        found.add((int(rows[i]), int(members[j])))
    return sorted(found)


def _num_bits(values: np.ndarray) -> np.ndarray:
    return _BITS[values[..., None].view(np.uint8)].sum(-1)


def _root(group_U: np.ndarray, number: int) -> int:
    while group_U[number] != number:
        group_U[number] = group_U[group_U[number]]
        number = int(group_U[number])
    return number


def _join(group_U: np.ndarray, first: int, second: int) -> None:
    group_U[_root(group_U, second)] = _root(group_U, first)
