"""That all ranks train the same: each reads its own recipe and data, maybe on a machine of its own.

Where they did not, weights drifted apart or batches were of nobody's order, without a word.
"""

import re
from collections.abc import Iterator
from typing import Any

from mmtrain.data.fingerprint import same_data
from mmtrain.data.numbered import NumberedData
from mmtrain.data.of_shards import inner_source
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.ranks import gather
from mmtrain.recipe import TrainRecipe
from mmtrain.settings.decode import encode
from mmtrain.settings.describe import show

OF_A_MACHINE = frozenset(
    {
        *("data.train", "data.mixture[].train", "data.join", "data.index_dir"),
        *("data.cache_dir", "data.cache_gb", "data.workers", "data.threads", "data.prefetch"),
        "run.peak_tflops",
    }
)
"""Where things lie on a machine, and what it can do: the samples are compared, not their places."""


def refuse_other_recipes(recipe: TrainRecipe) -> None:
    """Refuse ranks of which one has another recipe.

    Raises:
        UsageError: on every rank, naming the first key that differs.
    """
    first, *others = (dict(_leaves(encode_, "")) for encode_ in gather(encode(recipe)))
    for rank, other in enumerate(others, start=1):
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key) and not _is_of_a_machine(key):
                ours, theirs = (_told(each, key) for each in (first, other))
                raise UsageError(
                    f"{key} = {ours} on rank 0, but {theirs} on rank {rank}: all ranks train by "
                    "one recipe; give each machine the same file and options"
                )


def refuse_other_data(data: NumberedData[Any]) -> None:
    """Refuse ranks of which one has other samples.

    Raises:
        UsageError: on every rank, naming the set.
    """
    keys = [settings.key for settings in data.config.sources]
    first, *others = gather([_print_of(source) for source in data.sources])
    for rank, other in enumerate(others, start=1):
        for key, ours, theirs in zip(keys, first, other, strict=True):
            if ours[0] != theirs[0] or not same_data(ours[1], theirs[1]):
                told = f" has {ours[0]:,} samples on rank 0, but {theirs[0]:,} on rank {rank}"
                if ours[0] == theirs[0]:
                    joined = ", or what is joined to it," if data.config.joins else ""
                    told = f"{joined} is not the same on rank 0 and on rank {rank}"
                raise UsageError(
                    f"{key}.train{told}: all ranks share out one set; give each machine the same"
                )


def _print_of(source: SampleSource) -> tuple[int, str]:
    """Samples, and the fingerprint of shards: those of other kinds may hang on the machine, on a
    cache's path or on when a file was written."""
    is_shards = isinstance(inner_source(source), ShardSource)
    return source.num_samples, source.fingerprint if is_shards else ""


def _is_of_a_machine(key: str) -> bool:
    parts = re.sub(r"\[\d+\]", "[]", key).removesuffix("[]").split(".")
    return any(".".join(parts[:count]) in OF_A_MACHINE for count in range(1, len(parts) + 1))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves(each, f"{path}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{path}[{number}]")
    else:
        yield path, value


def _told(leaves: dict[str, Any], key: str) -> str:
    return show(leaves[key]) if key in leaves else "nothing"
