"""Which row has a key, in as little memory as there is need for."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mmtrain.errors import UsageError


class Index:
    """Row numbers by key, 16 bytes a row; whoever asks compares the key itself.

    Args:
        keys: of the rows, in order.
        key_of: the key of a row.
        told: names them in messages.

    Raises:
        UsageError: there is none, or one is there twice.
    """

    def __init__(self, keys: Iterable[str], *, key_of: Callable[[int], str], told: str) -> None:
        hashes = np.fromiter(map(_hashed, keys), dtype=np.uint64)
        if not hashes.size:
            raise UsageError(f"{told} has no rows; name another")
        self._row_N = np.argsort(hashes, kind="stable")
        self._hash_N = hashes[self._row_N]
        self._alike: dict[str, int] = {}
        """The rows of keys that have a hash in common."""
        same = self._hash_N[1:] == self._hash_N[:-1]
        for place in np.flatnonzero(same).tolist():
            for row in sorted(self._row_N[place : place + 2].tolist()):
                first = self._alike.setdefault(key_of(row), row)
                if first != row:
                    raise UsageError(
                        f"{told}: rows {first + 1} and {row + 1} have the same key; leave one row "
                        "a key (several captions may be a list)"
                    )

    def row(self, key: str) -> int | None:
        """The number of the row that may have a key."""
        if key in self._alike:
            return self._alike[key]
        place = int(np.searchsorted(self._hash_N, hashed := _hashed(key)))
        found = place < self._hash_N.size and int(self._hash_N[place]) == hashed
        return int(self._row_N[place]) if found else None


class PackedTexts:
    """Many texts in one array of bytes: Python's own take 50 bytes more each, and every worker a
    copy of them, since it counts who holds them.

    Args:
        parts: lists of texts, taken one after another.
    """

    def __init__(self, parts: Iterable[Sequence[str]]) -> None:
        joined, sizes = [], [np.zeros(0, dtype=np.int64)]
        for texts in parts:
            encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
            sizes.append(np.array([len(one) for one in encoded], dtype=np.int64))
            if encoded:
                joined.append(b"\n".join(encoded))
        self.all_bytes = np.frombuffer(b"\n".join(joined), dtype=np.uint8)
        """Of all, with a line feed between two."""
        self._end_N = np.cumsum(np.concatenate(sizes) + 1)
        self._end_N -= 1

    def __len__(self) -> int:
        return self._end_N.size

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> str:
        begin = int(self._end_N[number - 1]) + 1 if number else 0
        return bytes(self.all_bytes[begin : self._end_N[number]]).decode("utf-8", "surrogatepass")


def _hashed(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
