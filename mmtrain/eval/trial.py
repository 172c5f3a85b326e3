"""A handful of an evaluation's samples, read as it will read them: before a run, not hours in."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.look.look import evenly_spaced
from mmtrain.eval.samples import EvalBatches, Members

NUM_TRIED = 4
"""Samples of each set."""
_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, without their whole part, lie far apart from each other, however many."""


def try_samples(
    source: SampleSource,
    read_value: Callable[[Members], Any],
    preprocess: PreprocessConfig,
    *,
    key: str,
) -> list[Any]:
    """Decode the first sample, the last and some between -> what was read beside their images.

    An evaluation refuses a set with a single bad sample, so one that is found here would end it.

    Args:
        source: the set.
        read_value: what the evaluation reads of a sample beside its image.
        preprocess: what images go through.
        key: the setting that the set came from.

    Raises:
        UsageError: one of them cannot be used.
    """
    numbers = {0, source.num_samples - 1, *evenly_spaced(source.num_samples, NUM_TRIED - 2)}
    spans = [range(number, number + 1) for number in sorted(numbers)]
    batches = EvalBatches(source, preprocess, read_value=read_value, spans=spans)
    return [_value(batches, number, key) for number in range(len(spans))]


def values_in_turn(
    source: SampleSource,
    read_value: Callable[[Members], Any],
    *,
    name: str,
    key: str,
    most: int,
) -> Iterator[Any]:
    """What stands beside the images, of each sample once: the first ones already come from all
    over the set, whatever its order. No image is read.

    Args:
        source: the set.
        read_value: what is read of a sample.
        name: the file or field of the .json that it looks at.
        key: the setting that the set came from.
        most: how many samples at most.

    Raises:
        UsageError: one of them cannot be used.
    """
    num = source.num_samples
    stride = max(1, round(num * _GOLDEN))
    while math.gcd(stride, num) > 1:
        stride += 1
    spans = [range(at, at + 1) for at in (turn * stride % num for turn in range(min(num, most)))]
    batches = EvalBatches(
        source,
        PreprocessConfig(image_size=1),  # of images, which are left alone
        read_value=read_value,
        names=(name,),
        spans=spans,
        pictures=False,
    )
    return (_value(batches, number, key) for number in range(len(spans)))


def _value(batches: EvalBatches[Any], number: int, key: str) -> Any:
    batch = batches.batch(number)
    if batch.faults:
        told = (str(batch.faults[0]), batch.faults[0].remedy)
        raise UsageError(f"{key}: " + "; ".join(part for part in told if part))
    return batch.values[0]
