"""Every sample of some shards exactly once, decoded as published numbers want it."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmtrain.collectives import sum_
from mmtrain.data.decode import open_image
from mmtrain.data.samples import IMAGE_EXTENSIONS
from mmtrain.data.shards import SampleError, ShardSource
from mmtrain.data.transforms import PreprocessConfig, eval_transform
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder, encode_image_batch, own_batches

Members = dict[str, bytes]
"""A sample's files by extension, without the dot."""

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, kw_only=True)
class EvalBatch(Generic[ValueT]):
    """Samples in the order of the shards."""

    first: int
    """Number of the first sample in the whole set."""
    images_BCHW: Tensor
    """uint8."""
    values: list[ValueT]
    """What was read beside each image: a class, or captions."""
    faults: list[str]
    """Samples that cannot be evaluated, each with its shard and the reason."""

    def pin_memory(self) -> "EvalBatch[ValueT]":
        """The same in page-locked memory (called by DataLoader where an accelerator is fed)."""
        return dataclasses.replace(self, images_BCHW=self.images_BCHW.pin_memory())


class EvalBatches(Dataset[EvalBatch[ValueT]]):
    """Batch number -> the batch; what a DataLoader's workers hold."""

    def __init__(
        self,
        source: ShardSource,
        preprocess: PreprocessConfig,
        *,
        read_value: Callable[[Members], ValueT],
        batch_size: int,
    ) -> None:
        self.source = source
        self.transform = eval_transform(preprocess)
        self.read_value = read_value
        self.batch_size = batch_size
        self.image_size = preprocess.image_size

    def blank_row(self) -> Tensor:
        """One black image, uint8 [1, 3, S, S]: what a rank without a batch runs."""
        return torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8)

    def __len__(self) -> int:
        return -(-self.source.num_samples // self.batch_size)

    def __getitem__(self, number: int) -> EvalBatch[ValueT]:
        first = number * self.batch_size
        stop = min(first + self.batch_size, self.source.num_samples)
        images_BCHW = self.blank_row().repeat(stop - first, 1, 1, 1)
        values: list[ValueT] = []
        faults: list[str] = []
        for row, index in enumerate(range(first, stop)):
            try:
                members = self.source.read(index)
                values.append(self.read_value(members))
                images_BCHW[row] = self._square(members)
            # A disk that fails on one rank must stop all of them, not leave them waiting.
            except (SampleError, OSError, UsageError) as fault:
                faults.append(f"sample {self.source.key(index)}: {fault}")
        return EvalBatch(first=first, images_BCHW=images_BCHW, values=values, faults=faults)

    def _square(self, members: Members) -> Tensor:
        try:
            return self.transform(decode_sample(members))
        except ValueError as error:
            raise SampleError("image too elongated") from error


def decode_sample(members: Members) -> Image.Image:
    """A sample's image as Pillow decodes it, in its own mode.

    Raises:
        SampleError: it has none, or one that is damaged or too large.
    """
    for extension in IMAGE_EXTENSIONS:
        if extension in members:
            return open_image(members[extension])
    raise SampleError("no image")


def open_source(data: str | Sequence[str], index_dir: str | None) -> ShardSource:
    """The shards of an evaluation."""
    patterns = data if isinstance(data, str) else tuple(data)
    return ShardSource(patterns, index_dir=index_dir, key="data")


def read_text_field(members: Members, key: str) -> Any:
    """The member `key` as text, or else the field `key` of the .json.

    Raises:
        SampleError: the sample has neither, or its .json is none.
    """
    if key in members:
        return members[key].decode("utf-8", errors="replace").strip()
    if "json" not in members:
        raise SampleError(f"it has neither a .{key} nor a .json")
    try:
        fields = json.loads(members["json"])
    except ValueError as error:
        raise SampleError(f"its .json cannot be read ({error})") from error
    if not isinstance(fields, dict) or key not in fields:
        raise SampleError(f"it has no .{key} and its .json no field {key!r}")
    return fields[key]


def encoded_batches(
    encoder: Encoder, source: ShardSource, read_value: Callable[[Members], ValueT]
) -> Iterator[tuple[EvalBatch[ValueT], Tensor]]:
    """This rank's batches of the whole set, each with its image features [B, E].

    A rank with fewer batches than another gets empty ones at the end.

    Raises:
        UsageError: on every rank, when a sample on any of them cannot be evaluated: a score over
            fewer samples than the set has would look like the real one.
    """
    batches = EvalBatches(
        source, encoder.preprocess, read_value=read_value, batch_size=encoder.batch_size
    )
    numbers = list(own_batches(len(batches), encoder.group))
    loader: Iterator[EvalBatch[ValueT]] = iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=[number for number in numbers if number is not None],
            num_workers=encoder.workers,
            pin_memory=encoder.device.type == "cuda",
            # Its own: else it takes a number from the generator that the run's checkpoint holds.
            generator=torch.Generator(),
        )
    )
    blank = EvalBatch[ValueT](first=0, images_BCHW=batches.blank_row(), values=[], faults=[])
    for number in numbers:
        batch = blank if number is None else next(loader)
        features = encode_image_batch(encoder, batch.images_BCHW)
        _refuse_faults(encoder, batch, features)
        yield batch, features[: len(batch.values)]


def _refuse_faults(encoder: Encoder, batch: EvalBatch[Any], features: Tensor) -> None:
    faults = list(batch.faults)
    if not faults and not bool(features.isfinite().all()):
        faults = [f"the image features from sample {batch.first} on are not finite"]
    count = sum_(torch.tensor(len(faults), device=encoder.device), group=encoder.group)
    if not int(count):
        return
    held: list[list[str]] = [faults]
    if encoder.group is not None:
        held = [[]] * dist.get_world_size(encoder.group)
        dist.all_gather_object(held, faults, group=encoder.group)
    told = [fault for some in held for fault in some]
    more = f" (and {len(told) - 1} more so far)" if len(told) > 1 else ""
    raise UsageError(f"evaluation data: {told[0]}{more}; mend or leave out such samples")
