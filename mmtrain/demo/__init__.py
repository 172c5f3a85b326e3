"""The data set that travels in the package, and (in `demo.py`) the demo that trains on it."""

from mmtrain.demo.emoji_pairs import debug_pairs, unpack_emoji_pairs

__all__ = ["debug_pairs", "unpack_emoji_pairs"]
