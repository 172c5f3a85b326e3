"""A handful of an evaluation's samples, read as it will read them: before a run, not hours in."""

from collections.abc import Callable
from typing import Any

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.look.look import evenly_spaced
from mmtrain.eval.samples import EvalBatches, Members

NUM_TRIED = 4
"""Samples of each set."""


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
    values: list[Any] = []
    for number in range(len(spans)):
        batch = batches.batch(number)
        if batch.faults:
            told = (str(batch.faults[0]), batch.faults[0].remedy)
            raise UsageError(f"{key}: " + "; ".join(part for part in told if part))
        values += batch.values
    return values
