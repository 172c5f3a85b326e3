"""The captions of a sample, however many it has, and the images of a set, each once."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtrain.data.members import image_file
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.manifest import ManifestSource
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.text.caption_text import caption_lines, split_captions
from mmtrain.errors import UsageError
from mmtrain.eval.outcomes import name_order, sample_names
from mmtrain.eval.samples import Members, read_text_field


@dataclass(frozen=True, kw_only=True)
class ReadCaptions:
    """Sample -> all its captions."""

    fields: tuple[str, ...]
    """Members (`txt`) or fields of the .json; a list, or a text that is one (`["a", "b"]`, as
    tables hold them), is several captions."""
    lines: bool | None = None
    """Every line of a text is a caption; False: the whole text is one. None: a text of several
    lines is refused, since it may be either."""

    def __call__(self, members: Members) -> list[str]:
        """Raises SampleError when a field is missing or no text, or nothing is in any; UsageError
        where one caption cannot be told from several."""
        captions: list[str] = []
        for field in self.fields:
            value = read_text_field(members, field, setting="captions")
            texts = value if isinstance(value, list) else [value]
            if not all(isinstance(text, str) for text in texts):
                raise SampleError(f"its {field} is neither a text nor a list of texts")
            for text in texts:
                captions += self._captions(text, field)
        captions = [caption.strip() for caption in captions if caption.strip()]
        if not captions:
            raise SampleError(f"it has no caption in {', '.join(self.fields)}")
        return captions

    def _captions(self, text: str, field: str) -> list[str]:
        captions = split_captions(text, lines=self.lines)
        if self.lines is None and captions == [text] and len(lines := caption_lines(text)) > 1:
            raise UsageError(
                f"its {field} has {len(lines)} lines, each a caption (--caption-lines, or "
                "caption_lines = true in a recipe) or all of them one (--one-caption, "
                "caption_lines = false)?"
            )
        return captions


@dataclass(frozen=True, kw_only=True)
class FirstCaption:
    """Sample -> the first of its captions."""

    read_captions: ReadCaptions

    def __call__(self, members: Members) -> str:
        """Raises SampleError when the sample has no caption."""
        return self.read_captions(members)[0]


@dataclass(frozen=True, kw_only=True)
class ReadImageCaptions:
    """Sample -> all its captions, and a digest of its image's file."""

    read_captions: ReadCaptions

    def __call__(self, members: Members) -> tuple[list[str], bytes]:
        """Raises as `ReadCaptions`, or SampleError where there is no image."""
        captions = self.read_captions(members)
        return captions, hashlib.blake2b(image_file(members), digest_size=16).digest()


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """The images of a set. Rows of a table that name one file are one image with their captions."""

    samples: list[int]
    """The first sample of each image; images stand in the order of their names, so that no rank
    depends on the order of the data."""
    names: list[str]
    """Of the images."""
    captions: list[list[str]]
    """Of each image."""
    num_different: int
    """Images whose files differ."""
    order: list[int]
    """The place of each among first samples."""


def first_rows(source: SampleSource) -> list[int]:
    """Of each sample the first one of the same image: itself, but where rows of a table name one
    file."""
    numbers = range(source.num_samples)
    if not isinstance(source, ManifestSource):
        return list(numbers)
    first: dict[str, int] = {}
    return [first.setdefault(os.path.normpath(source.key(row)), row) for row in numbers]


def image_rows(
    source: SampleSource,
    first: Sequence[int],
    of_images: Sequence[tuple[list[str], bytes]],
    further: Sequence[list[str]],
) -> ImageRows:
    """Every image of a set once.

    Args:
        source: the samples.
        first: from `first_rows`.
        of_images: what ReadImageCaptions gave of each image's first sample.
        further: the captions of the other samples.
    """
    samples = [sample for sample, row in enumerate(first) if sample == row]
    captions = {sample: list(own) for sample, (own, _) in zip(samples, of_images, strict=True)}
    others = [row for sample, row in enumerate(first) if sample != row]
    for row, own in zip(others, further, strict=True):
        captions[row] += own
    if isinstance(source, ManifestSource):
        # Its rows may stand in any order.
        captions = {sample: sorted(own) for sample, own in captions.items()}
    names = sample_names(source, samples)
    order = name_order(names)
    return ImageRows(
        samples=[samples[place] for place in order],
        names=[names[place] for place in order],
        captions=[captions[samples[place]] for place in order],
        num_different=len({digest for _, digest in of_images}),
        order=order,
    )


@dataclass(frozen=True, kw_only=True)
class Captions:
    """All captions of a set. Equal ones are encoded once, so that they also score the same."""

    distinct: list[str]
    """U different texts in the order of their first appearance."""
    text_M: Tensor
    """Which of them each caption is."""
    image_M: Tensor
    """Which image each caption belongs to."""


def number_captions(own_captions: list[list[str]], device: torch.device) -> Captions:
    """Number the different texts of all images."""
    number: dict[str, int] = {}
    texts = [number.setdefault(text, len(number)) for own in own_captions for text in own]
    images = [image for image, own in enumerate(own_captions) for _ in own]
    return Captions(
        distinct=list(number),
        text_M=torch.tensor(texts, device=device),
        image_M=torch.tensor(images, device=device),
    )
