"""Some samples of a source, as a source."""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from mmtrain.data.order.plan import even_pieces
from mmtrain.data.sources.source import SampleSource


class ChosenSource:
    """Samples of another source by their numbers there; a SampleSource.

    Args:
        source: of all of them.
        numbers: those that are read, in their order.
    """

    def __init__(self, source: SampleSource, numbers: Sequence[int]) -> None:
        self._source, self._numbers = source, numbers
        self.num_samples = len(numbers)
        self.shard_sizes = even_pieces(self.num_samples)

    @property
    def fingerprint(self) -> str:
        """Of all samples, and of which are read."""
        digest = hashlib.blake2b(self._source.fingerprint.encode(), digest_size=16)
        digest.update(np.asarray(self._numbers, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """As the whole source's."""
        return self._source.key(self._numbers[sample])

    def place(self, sample: int) -> str:
        """As the whole source's."""
        return self._source.place(self._numbers[sample])

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """As the whole source's."""
        return self._source.read(self._numbers[sample], wanted)


def chosen(source: SampleSource, numbers: Sequence[int]) -> SampleSource:
    """The source of some samples; the source itself where they are all."""
    return source if len(numbers) == source.num_samples else ChosenSource(source, numbers)
