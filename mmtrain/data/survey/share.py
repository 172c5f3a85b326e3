"""A share of the data, for one of several machines: whole shards, where the data are shards."""

from collections.abc import Sequence

import numpy as np

from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.source import SampleSource
from mmtrain.settings.numbers import refuse_empty_part


def shared_samples(source: SampleSource, part: tuple[int, int]) -> np.ndarray:
    """The samples of one of n shares, rising, int64; every sample is in one share.

    Args:
        source: the samples: of shards every n-th shard, else a stretch of samples.
        part: number and count of the shares.

    Raises:
        UsageError: there are fewer shards, or samples, than parts.
    """
    number, count = part
    if isinstance(source, ShardSource):
        refuse_empty_part(part, len(source.shards), "shards")
        return _of_shards(source.shard_sizes, number, count)
    refuse_empty_part(part, source.num_samples, "samples")
    first, end = (source.num_samples * each // count for each in (number, number + 1))
    return np.arange(first, end)


def _of_shards(sizes: Sequence[int], number: int, count: int) -> np.ndarray:
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    spans = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return np.concatenate(spans[number::count])
