"""Where an evaluation's samples are: anything that reads a sample by its number."""

from collections.abc import Sequence
from typing import Any, Protocol

from mmtrain.data.shards import ShardSource
from mmtrain.errors import UsageError

Members = dict[str, bytes]
"""A sample's files by extension, without the dot."""


class EvalSource(Protocol):
    """Samples by number. Safe to pickle and to fork."""

    @property
    def num_samples(self) -> int:
        """How many; at least one."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What a result tells of its data: `data_fingerprint`, and how much there is."""
        ...

    def key(self, sample: int) -> str:
        """Names a sample."""
        ...

    def read(self, sample: int) -> Members:
        """A sample's files.

        Raises:
            SampleError, OSError, UsageError: they cannot be read.
        """
        ...

    def name(self, sample: int) -> str:
        """A sample for a message: its key and where it is. Never raises."""
        ...


class Shards:
    """The samples of tar shards.

    Args:
        data: shards, as data.train takes them.
        index_dir: where their indexes are kept; None: beside them, or in the user's cache folder.

    Raises:
        UsageError: as `ShardSource`.
    """

    def __init__(self, data: str | Sequence[str], *, index_dir: str | None = None) -> None:
        patterns = data if isinstance(data, str) else tuple(data)
        self._shards = ShardSource(patterns, index_dir=index_dir, key="data")

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return self._shards.num_samples

    @property
    def facts(self) -> dict[str, Any]:
        """The content's fingerprint and the number of shards."""
        return {
            "data_fingerprint": self._shards.fingerprint,
            "num_shards": len(self._shards.shards),
        }

    def key(self, sample: int) -> str:
        """The sample's key inside its shard."""
        return self._shards.key(sample)

    def read(self, sample: int) -> Members:
        """The sample's members by extension."""
        return self._shards.read(sample)

    def name(self, sample: int) -> str:
        """Its key and shard; the shard that cannot be read cannot tell the key either."""
        shard, inside = self._shards.locate(sample)
        try:
            return f"sample {self.key(sample)} of {shard.path}"
        except (OSError, UsageError):
            return f"sample number {inside} of {shard.path}"
