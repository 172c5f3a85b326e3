"""Every sample of a source exactly once, decoded as published numbers want it."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmtrain.collectives import rank_and_size
from mmtrain.data.images.decode import open_image, rgb_image
from mmtrain.data.images.tiles import Pieces, TilesConfig, cut
from mmtrain.data.images.transforms import PreprocessConfig, eval_transform
from mmtrain.data.members import image_file, read_members
from mmtrain.data.sample_error import IncompleteError, SampleError
from mmtrain.data.sources.open import explained
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.storage.patience import patience
from mmtrain.data.workers import iterate_batches
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder, encode_image_batch, own_batches
from mmtrain.eval.together import gather_all, on_all_ranks, sum_of_all
from mmtrain.files import parse_json

Members = dict[str, bytes]
"""A sample's files by extension, without the dot."""

ValueT = TypeVar("ValueT")

_NAME_ONE = "name a place with"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A sample that cannot be evaluated."""

    row: int
    """Of its batch."""
    name: str
    """Its key and where it is."""
    reason: str
    """Why not."""
    is_bad_sample: bool
    """The sample's own fault, not a disk's: a job that may leave out samples may leave it out."""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"

    @property
    def remedy(self) -> str:
        """What to do; empty where the reason, being no fault of the sample's, says it itself."""
        return "mend or leave out such samples" if self.is_bad_sample else ""


@dataclass(frozen=True, kw_only=True)
class EvalBatch(Generic[ValueT]):
    """Samples in the order of the source."""

    first: int
    """Number of the first sample in the whole set."""
    images_BCHW: Tensor
    """uint8 [B, 3, S, S]; black where there is a fault."""
    values: list[ValueT]
    """What was read beside each image, a class or captions; of the samples without fault."""
    faults: list[Fault]
    """Samples that cannot be evaluated."""
    pieces: Pieces | None = None
    """Of the images, where they are cut into tiles; `images_BCHW` is then black."""

    def pin_memory(self) -> "EvalBatch[ValueT]":
        """The same in page-locked memory (called by DataLoader where an accelerator is fed)."""
        return dataclasses.replace(self, images_BCHW=self.images_BCHW.pin_memory())


class EvalBatches(Generic[ValueT]):
    """Batches of a set by their number.

    Args:
        source: the samples.
        preprocess: what their images go through.
        read_value: what is wanted of a sample beside its image.
        names: the files or fields of the .json that `read_value` looks at; None: all files.
        spans: the first sample of each batch and the one behind its last.
        tiles: how images are cut; None: not at all.
        pictures: decode the images; if not, `images_BCHW` has no pixels.
        reads_image: `read_value` looks at the image's file too.
    """

    def __init__(
        self,
        source: SampleSource,
        preprocess: PreprocessConfig,
        *,
        read_value: Callable[[Members], ValueT],
        names: Collection[str] | None = None,
        spans: Sequence[range],
        tiles: TilesConfig | None = None,
        pictures: bool = True,
        reads_image: bool = False,
    ) -> None:
        self.source, self.preprocess, self.tiles = source, preprocess, tiles
        self.transform = eval_transform(preprocess)
        self.read_value = read_value
        self.names = names
        self.spans = spans
        self.image_size = preprocess.image_size if pictures else 0
        self.pictures, self.reads_image = pictures, pictures or reads_image
        self.retry_seconds = patience()  # here: a worker may be a process without the context

    def blank(self) -> EvalBatch[ValueT]:
        """No samples: what a rank runs in a round without a batch of its own."""
        return EvalBatch(first=0, images_BCHW=self._black(1), values=[], faults=[])

    def batch(self, number: int) -> EvalBatch[ValueT]:
        """One batch; what cannot be evaluated is a fault, not an exception."""
        span = self.spans[number]
        images_BCHW = self._black(len(span))
        values: list[ValueT] = []
        faults: list[Fault] = []
        cuts: list[tuple[Tensor, Tensor]] = []
        for row, index in enumerate(span):
            try:
                # A disk that stayed away is not waited for sample by sample.
                is_lost = any(not fault.is_bad_sample for fault in faults)
                members = read_members(
                    self.source,
                    index,
                    self.names,
                    or_json=True,
                    image=self.reads_image,
                    retry_seconds=0.0 if is_lost else self.retry_seconds,
                )
                value = self.read_value(members)
                if self.tiles is None and self.pictures:
                    images_BCHW[row] = self._square(members)
                elif self.tiles is not None:
                    cuts.append(cut_image(decode_sample(members), self.preprocess, self.tiles))
                values.append(value)
            # A disk that fails on one rank must stop all of them, not leave them waiting.
            except (SampleError, OSError, UsageError) as caught:
                bad, error = isinstance(caught, SampleError), caught
                if isinstance(caught, IncompleteError):
                    error = explained(caught, self.source, index)
                reason = error.told if isinstance(error, SampleError) else str(error)
                faults.append(
                    Fault(row=row, name=self._name(index), reason=reason, is_bad_sample=bad)
                )
        return EvalBatch(
            first=span.start,
            images_BCHW=images_BCHW,
            values=values,
            faults=faults,
            pieces=Pieces.joined(cuts) if cuts else None,
        )

    def _black(self, num: int) -> Tensor:
        return torch.zeros(num, 3, self.image_size, self.image_size, dtype=torch.uint8)

    def _name(self, index: int) -> str:
        """For a message; a shard that cannot be read cannot tell the key either."""
        try:
            key, place = self.source.key(index), self.source.place(index)
            # A malformed row has no other name than its place.
            return place if key == place else f"sample {key} of {place}"
        except (OSError, UsageError):
            return f"sample number {index}"

    def _square(self, members: Members) -> Tensor:
        image = decode_sample(members)
        try:
            return self.transform(image)
        except ValueError as error:
            raise SampleError("image too elongated") from error


def cut_image(
    image: Image.Image, preprocess: PreprocessConfig, tiles: TilesConfig
) -> tuple[Tensor, Tensor]:
    """The pieces of an image and their places, as training cuts it."""
    pixels_HWC = torch.from_numpy(np.array(rgb_image(image)))
    size, filter_ = preprocess.image_size, preprocess.interpolation
    return cut(pixels_HWC, tiles, size=size, interpolation=filter_)


def decode_sample(members: Members) -> Image.Image:
    """A sample's image as Pillow decodes it, in RGB.

    Raises:
        SampleError: it has none, or one that is damaged or too large.
    """
    return open_image(image_file(members))


def read_text_field(members: Members, key: str, *, setting: str) -> Any:
    """The member `key` as text, or else the field `key` of the .json.

    Args:
        members: a sample's files.
        key: the name.
        setting: what says it in a recipe, for the message; the option has dashes.

    Raises:
        SampleError: the sample has neither, or its .json is none.
    """
    if key in members:
        return members[key].decode("utf-8", errors="replace").strip()
    if "json" not in members:
        told = f"it has neither a .{key} nor a .json"
        raise IncompleteError(told, wanted=(key, "json"), detail=_places({}, setting))
    try:
        fields = parse_json(members["json"])
    except ValueError as error:
        raise SampleError(f"its .json cannot be read ({error})") from error
    if not isinstance(fields, dict) or key not in fields:
        told = f"it has no .{key} and its .json no field {key!r}"
        raise IncompleteError(told, wanted=(key,), detail=_places(fields, setting))
    return fields[key]


def _places(fields: Any, setting: str) -> str:
    """What a sample's .json has instead, and where to name it."""
    inside = f"it has {', '.join(fields)}: " if isinstance(fields, dict) and fields else ""
    return f"{inside}{_NAME_ONE} --{setting.replace('_', '-')}, in a recipe {setting}"


def spans(num_samples: int, size: int) -> list[range]:
    """All samples in runs of `size`, the last one shorter."""
    return [range(at, min(at + size, num_samples)) for at in range(0, num_samples, size)]


def made_ahead(
    encoder: Encoder, batches: EvalBatches[ValueT]
) -> Generator[EvalBatch[ValueT], None, None]:
    """The batches in order, made by the encoder's workers; closing it ends them."""
    return iterate_batches(
        batches,
        0,
        len(batches.spans),
        workers=encoder.workers,
        prefetch=2,
        pin_memory=encoder.device.type == "cuda",
    )


def encoded_batches(
    encoder: Encoder,
    source: SampleSource,
    read_value: Callable[[Members], ValueT],
    *,
    names: Collection[str] | None = None,
    reads_image: bool = False,
) -> Iterator[tuple[EvalBatch[ValueT], Tensor]]:
    """This rank's batches of the whole set, each with its image features [B, E].

    A rank with fewer batches than another gets empty ones at the end. Arguments as EvalBatches.
    Where the encoder has the set's features kept, no image is decoded, nor read unless `read_value`
    wants it.

    Raises:
        UsageError: on every rank, when a sample on any of them cannot be evaluated: a score over
            fewer samples than the set has would look like the real one.
    """
    kept_NE = None if encoder.kept is None else encoder.kept(source)
    every = spans(source.num_samples, encoder.batch_size)
    numbers = list(own_batches(len(every), encoder.group))
    batches = EvalBatches(
        source,
        encoder.preprocess,
        read_value=read_value,
        names=names,
        spans=[every[number] for number in numbers if number is not None],
        pictures=kept_NE is None,
        reads_image=reads_image,
    )
    with contextlib.closing(made_ahead(encoder, batches)) as own:
        for turn, number in enumerate(numbers, 1):
            with on_all_ranks(encoder.group, encoder.device):
                batch = batches.blank() if number is None else next(own)
                if kept_NE is None:
                    features = encode_image_batch(encoder, batch.images_BCHW)
                else:
                    rows = slice(batch.first, batch.first + len(batch.images_BCHW))
                    features = kept_NE[rows].to(encoder.device)
                faults = _faults(batch, features)
            _refuse_faults(encoder, batch, faults)
            if encoder.progress is not None:
                through = turn * rank_and_size(encoder.group)[1] * encoder.batch_size
                encoder.progress(min(through, source.num_samples), source.num_samples)
            yield batch, features[: len(batch.values)]


def _faults(batch: EvalBatch[Any], features: Tensor) -> list[str]:
    faults = [str(fault) for fault in batch.faults]
    if not faults and not bool(features.isfinite().all()):
        faults = [f"the image features from sample {batch.first} on are not finite"]
    return faults


def _refuse_faults(encoder: Encoder, batch: EvalBatch[Any], faults: list[str]) -> None:
    remedy = next((fault.remedy for fault in batch.faults), "mend or leave out such samples")
    if len(batch.faults) == batch.images_BCHW.size(0) and _NAME_ONE in faults[0]:
        remedy = ""  # no sample has it, so the name is wrong and not the samples
    refuse_on_all_ranks(encoder, faults, key="evaluation data", remedy=remedy)


def refuse_on_all_ranks(encoder: Encoder, faults: list[str], *, key: str, remedy: str) -> None:
    """Stop every rank where one of them has a fault; collective.

    Raises:
        UsageError: naming the first fault and how many more there are.
    """
    count = sum_of_all(torch.tensor(len(faults), device=encoder.device), group=encoder.group)
    if not int(count):
        return
    held = gather_all(faults, group=encoder.group, device=encoder.device)
    told = [fault for some in held for fault in some]
    more = f" (and {len(told) - 1} more so far)" if len(told) > 1 else ""
    raise UsageError(f"{key}: {told[0]}{more}" + (f"; {remedy}" if remedy else ""))
