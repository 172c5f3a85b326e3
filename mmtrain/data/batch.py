"""What the data hands to the model: the fields and shapes, documented once."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from mmtrain.errors import on_one_line


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """One sample that could not be used, and why."""

    key: str
    """The sample's key inside its shard."""
    shard: str
    """The shard's path as the user gave it; FILE:LINE of a row of a manifest."""
    reason: str
    """A short, countable reason, such as `no caption` or `image truncated`."""
    detail: str = ""
    """What is the sample's own in it, such as the path that was looked for."""
    source: str = ""
    """The name of its source in a mixture."""
    position: int
    """The position inside its epoch that it was read for; a replacement can be bad too."""
    is_replacement: bool = False
    """It was itself to replace a bad sample."""

    def __str__(self) -> str:
        # A malformed row has no other name than its place.
        name = self.key if self.key == self.shard else f"{self.key} in {self.shard}"
        return on_one_line(name + (f" ({self.detail})" if self.detail else ""))


class Taken(NamedTuple):
    """What rows take of an epoch of a source, by the samples that were planned for them."""

    source: int
    epoch: int
    delivered: int
    """Rows whose own sample was delivered."""
    bad: int
    """Rows whose sample another replaced."""
    total: int
    """The sum of the samples' numbers, modulo 2 ** 64; with the next, whether they are the ones."""
    squares: int
    """The sum of their squares, likewise."""

    @property
    def sums(self) -> dict[str, int]:
        """What adds up over batches."""
        return {name: n for name, n in self._asdict().items() if name not in ("source", "epoch")}


@dataclass(frozen=True, kw_only=True)
class SampleMeta:
    """What an evaluation wants to know of a sample beside its pixels."""

    captions: tuple[str, ...]
    """All its captions, in the order of the caption keys."""
    fields: dict[str, Any]
    """Its .json as it is; empty if it has none."""


@dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """The rows of one global batch that one data-parallel coordinate holds.

    All tensor- and pipeline-parallel ranks of the coordinate see the same rows.
    """

    images_BCHW: Tensor
    """uint8, channels_last in memory; the model normalises. [B, 0] where another pipeline stage has
    the images."""
    position_B: Tensor
    """int64 position inside the epoch's global order: with it the key of all per-sample randomness;
    -1 on padding rows."""
    valid_B: Tensor
    """bool, False on padding rows of a last batch; such rows count nowhere."""
    epoch: int
    """The epoch these rows belong to."""
    phase: int = 0
    """Which phase of the run it is of, from 0."""
    keys: tuple[str, ...]
    """The samples' keys, so that a bad batch can be named; empty on padding rows."""
    bad: tuple[BadSample, ...] = ()
    """Samples that were replaced (masked, in an evaluation) while this batch was made."""
    host_length: Tensor | None = None
    """`text_length` as the data made it, once the batch is on a device: the host cuts texts by it,
    and would have to wait for the device's."""
    source_B: Tensor | None = None
    """int64, which source of a mixture each row is of; None without a mixture."""
    taken: tuple[Taken, ...] = ()
    """What the rows take of their epochs; none in an evaluation."""
    stream: Any = None
    """Of a stream which process made it, and where that stood behind it."""

    @property
    def num_rows(self) -> int:
        """Rows held here, padding included."""
        return self.position_B.size(0)

    @property
    def text_length(self) -> Tensor:
        """int64, tokens of each text that a text tower reads."""
        raise NotImplementedError

    def row_texts(self, decode: Callable[[list[int]], str]) -> list[str]:
        """What each row says, for people; "" on padding rows.

        Args:
            decode: a tokenizer's, from ids to a text.
        """
        raise NotImplementedError

    def row_images(self) -> list[Tensor]:
        """What each row shows, for people: uint8 [C, H, W], any W."""
        return list(self.images_BCHW)

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors on `device`, copied without blocking where possible."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        lengths = self.text_length if self.host_length is None else self.host_length
        return dataclasses.replace(self, **moved | {"host_length": lengths})

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, for an accelerator; DataLoader calls this."""
        pinned = {
            field.name: value.pin_memory()
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **pinned)


@dataclass(frozen=True, kw_only=True)
class ImageTextBatch(SampleBatch):
    """Images, each with a caption."""

    tokens_BT: Tensor
    """int64, cut to the longest text of the batch (or padded to a T where shapes are static)."""
    text_length_B: Tensor
    """int64, tokens of each text from its first to its end token, both counted."""
    label_B: Tensor
    """int64 identity of the concept or caption, for multi-positive losses; -1 is unique."""
    stored_BE: Tensor | None = None
    """fp32, another model's features of each whole image, where they are asked for; zeros on rows
    that have none."""
    texts: tuple[str, ...] = ()
    """The captions, where somebody beside the text tower reads them; "" on padding rows."""
    meta: tuple[SampleMeta, ...] = ()
    """One for each row in an evaluation; empty in training."""

    @property
    def text_length(self) -> Tensor:
        """The captions'."""
        return self.text_length_B

    def row_texts(self, decode: Callable[[list[int]], str]) -> list[str]:
        """The captions, where batches have them."""
        return list(self.texts)
