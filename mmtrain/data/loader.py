"""The whole pipeline for other people's trainers: shards to batches, exact to the sample."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.utils.data import default_collate

from mmtrain.data.bad_samples import AT_LEAST
from mmtrain.data.batch import BadSample
from mmtrain.data.config import DataConfig
from mmtrain.data.idle_arguments import refuse_idle_arguments
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.mapped import Map, MappedBatch, MappedData, keep_files
from mmtrain.data.numbered import NumberedData
from mmtrain.data.order.plan import PADDING
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.settings.decode import decode, encode
from mmtrain.settings.describe import NONE

_PER_RANK = 32
"""Samples that are made together where they are handed on one by one."""


class Loader:
    """Batches, or samples, of this rank; made by `open_loader`.

    Iterating gives the rest of the epoch, iterating again the next one. `state_dict` says what was
    handed on, and `load_state_dict` goes on behind it: on the sample, in whichever process, with
    another number of ranks or workers.

    Args:
        data: the batches.
        one_by_one: hand on their samples.
        world_size: ranks that share out each batch.
    """

    def __init__(self, data: NumberedData[Any], *, one_by_one: bool, world_size: int) -> None:
        self.data: NumberedData[Any] = data
        self._one_by_one, self._world_size = one_by_one, world_size
        self._bad: Counter[str] = Counter()
        self._num_read = 0
        self._batch = self._row = 0

    @property
    def epoch(self) -> int:
        """The epoch that iterating goes on with, from 0."""
        return self._batch // self.num_batches

    @property
    def num_batches(self) -> int:
        """Batches of an epoch; of samples one by one those that they are made in."""
        return self.data.batches_per_epoch

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return self.data.num_samples

    @property
    def bad(self) -> dict[str, int]:
        """How many samples of this rank could not be used and were replaced, by reason."""
        return dict(self._bad.most_common())

    def __len__(self) -> int:
        """What iterating gives in a whole epoch on this rank."""
        if not self._one_by_one:
            return self.num_batches
        last = self.data.plan.rows(self.num_batches - 1).position_B
        full = (self.num_batches - 1) * last.size
        return full + int((last != PADDING).sum())

    def __iter__(self) -> Iterator[Any]:
        """The rest of this epoch.

        Raises:
            UsageError: a shard cannot be read, or too many samples are bad.
        """
        start, stop = self._batch, (self.epoch + 1) * self.num_batches
        batches = self.data.iterate(start, stop)
        try:
            for batch in batches:
                self._count(batch.bad)
                content = batch.content if isinstance(batch, MappedBatch) else batch
                if self._one_by_one:
                    yield from self._rows(content)
                self._batch, self._row = self._batch + 1, 0
                if not self._one_by_one:
                    yield content
        finally:
            batches.close()

    def _count(self, bad: Sequence[BadSample]) -> None:
        self._bad.update(sample.reason for sample in bad)
        self._num_read += self.data.plan.batch_size // self._world_size + len(bad)
        most = self.data.config.max_bad_fraction
        if self._bad.total() > most * max(self._num_read, AT_LEAST):
            counts = ", ".join(f"{reason}: {count}" for reason, count in self.bad.items())
            raise UsageError(
                f"max_bad_fraction = {most:g}: {self._bad.total()} of {self._num_read} samples "
                f"read are bad ({counts}; the last is {bad[-1]}); mend them, or allow more"
            )

    def _rows(self, content: Sequence[Any]) -> Iterator[Any]:
        while self._row < len(content):
            self._row += 1
            yield content[self._row - 1]

    def state_dict(self) -> dict[str, Any]:
        """Where this is, as plain JSON; the same on every rank that has taken as much."""
        return {
            "batch": self._batch,
            "row": self._row,
            **self._identity(),
            "world_size": self._world_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state says.

        Raises:
            UsageError: it is of other data, another seed or batch; or within a batch that other
                ranks would share out otherwise.
        """
        for name, own in self._identity().items():
            if state.get(name) != own:
                raise UsageError(
                    f"the state's {name} = {state.get(name)!r} is not this loader's, {own!r}: the "
                    "order would be another one; open it as it was"
                )
        if state["row"] and state["world_size"] != self._world_size:
            raise UsageError(
                f"the state is amid a batch of {state['world_size']} ranks, not "
                f"{self._world_size}; go on with as many, or from a state between two batches"
            )
        self._batch, self._row = state["batch"], state["row"]

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.data.seed,
            "batch_size": self.data.plan.batch_size,
            "fingerprint": self.data.fingerprint,
        }


def open_loader(
    train: str | Path | Sequence[str | Path] | None,
    *,
    batch_size: int | None,
    image_size: int | None = None,
    tokenizer: Tokenizer | TokenizerConfig | None = None,
    map: Map | None = None,
    collate: Callable[[list[Any]], Any] | None = default_collate,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    pin_memory: bool = False,
    **settings: Any,
) -> Loader:
    """Open data for a trainer of your own.

    With `image_size` batches are `ImageTextBatch`, images and token ids as mmtrain trains on them.
    With `map` they are what that function makes of a sample's files, collated. With neither they
    are lists of the files themselves, dicts as webdataset gives them: `__key__`, `__url__`, `jpg`,
    `txt`, `json` ... as bytes.

    Args:
        train: as `data.train`; None beside `mixture`.
        batch_size: rows of a *global* batch; None: samples come one by one.
        image_size: height and width of the images.
        tokenizer: of the texts, with `image_size`; None: CLIP's.
        map: files -> anything; it runs in the workers. Where it raises `SampleError`, another
            sample is taken, by a rule that a resume repeats.
        collate: a list of what `map` made -> a batch; None: the list.
        seed: of the order, and of crops and captions.
        rank: this data-parallel rank; None: torch.distributed's, or 0.
        world_size: how many there are; None: torch.distributed's, or 1.
        pin_memory: hand tensors on in page-locked memory.
        settings: any other key of the section [data], such as `workers` or `shuffle_group`; what
            nothing would read is refused.

    Raises:
        UsageError: the data cannot be had, or a setting does not fit.
    """
    if image_size is not None and map is not None:
        raise UsageError("image_size and map are two ways to make a batch; give one of them")
    if image_size is not None and batch_size is None:
        raise UsageError("batch_size = None hands on what map makes; give a map, or a batch_size")
    if tokenizer is not None and image_size is None:
        raise UsageError("tokenizer has no effect without image_size; leave it out")
    alone = not (dist.is_available() and dist.is_initialized())
    rank = (0 if alone else dist.get_rank()) if rank is None else rank
    world_size = (1 if alone else dist.get_world_size()) if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise UsageError(f"rank = {rank} must be within 0 and world_size - 1 = {world_size - 1}")
    if batch_size is None:
        settings = {"last": "mask", **settings}  # so that every sample comes
    config = decode(DataConfig, _as_written({"train": train, **settings}), path="data")
    refuse_idle_arguments(
        config,
        image_size=image_size,
        map=map,
        collate=collate,
        batch_size=batch_size,
        pin_memory=pin_memory,
    )
    common: dict[str, Any] = {
        "seed": seed,
        "batch_size": _PER_RANK * world_size if batch_size is None else batch_size,
        "rank": rank,
        "world_size": world_size,
        "pin_memory": pin_memory,
    }
    if image_size is not None:
        preprocess = PreprocessConfig(
            image_size=image_size,
            resize_mode=config.resize_mode,
            interpolation=config.interpolation,
        )
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = build_tokenizer(tokenizer or TokenizerConfig(), folder=Path())
        data: NumberedData[Any] = ImageTextData(
            config, preprocess=preprocess, tokenizer=tokenizer, **common
        )
    else:
        together = collate if map is not None and batch_size is not None else None
        data = MappedData(config, map=map or keep_files, collate=together, **common)
    return Loader(data, one_by_one=batch_size is None, world_size=world_size)


def _as_written(value: Any) -> Any:
    """A setting as a recipe would have it, so that its type is looked at as there."""
    if value is None:
        return NONE
    if is_dataclass(value) and not isinstance(value, type):
        return encode(value)
    if isinstance(value, Mapping):
        return {name: _as_written(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_written(each) for each in value]
    return str(value) if isinstance(value, Path) else value
