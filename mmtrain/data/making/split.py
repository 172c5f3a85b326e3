"""Parts of a data set by their samples' keys: a sample's part depends on nothing but its key."""

import bisect
import hashlib
from collections.abc import Sequence


def part_of(key: str, ends: Sequence[float]) -> int:
    """The part that a key falls in, the same for ever and in whatever data it comes again.

    Parts are intervals of the line from 0 to 1, on which a hash puts the key; so a part that is
    made larger at its end keeps what it had.

    Args:
        key: the sample's.
        ends: where each part ends, rising to 1.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    place = int.from_bytes(digest, "little") / 2**64
    return min(bisect.bisect_right(ends, place), len(ends) - 1)
