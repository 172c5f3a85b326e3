"""Height and width of an image from its header: no pixel is decoded."""

from mmtrain.data.images.decode import webp_size

_PNG = b"\x89PNG\r\n\x1a\n"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG's markers of a frame's header."""
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a length behind them."""


def header_size(head: bytes) -> tuple[int, int]:
    """Height and width that the header of a JPEG, PNG or WebP says; (0, 0) where it says nothing.

    Args:
        head: the file's beginning, with a JPEG's metadata before its frame.
    """
    if head[:2] == b"\xff\xd8":
        return _jpeg_size(head)
    if head[:8] == _PNG and head[12:16] == b"IHDR" and len(head) >= 24:
        return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
    return webp_size(head) or (0, 0)


def _jpeg_size(head: bytes) -> tuple[int, int]:
    """By the chain of its segments; ITU-T T.81, section B.2."""
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if marker == 0xFF:  # a byte that only fills up
            at += 1
        elif marker in _FRAMES:
            height, width = head[at + 5 : at + 7], head[at + 7 : at + 9]
            return int.from_bytes(height, "big"), int.from_bytes(width, "big")
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return 0, 0
