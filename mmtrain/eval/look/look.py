"""A look at what a model makes of some images of a set: where each one's text is in it, what the
vision tower attends to, and which images and texts lie near each other."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from mmtrain.data.images.transforms import EvalTransform, eval_transform
from mmtrain.data.members import read_members
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder, encode_image_batch, encode_texts
from mmtrain.eval.features.embedding_map import neighbour_plane, principal_plane
from mmtrain.eval.look.attention_maps import has_maps, read_images, text_maps
from mmtrain.eval.look.pictures import draw_heat, draw_sheet, refuse_undrawable, seen_part, to_webp
from mmtrain.eval.look.rollout import attention_rollout
from mmtrain.eval.samples import Members, decode_sample
from mmtrain.models import Clip

MAX_POINTS = 300
"""Images of the plane: what t-SNE does in two seconds and a page shows in a megabyte."""
_COUNTS = 0.0005
"""The least that is not +0.000 of a cosine."""
MAX_MAPS = 8


@dataclass(frozen=True, kw_only=True)
class MapExample:
    """An image with its two maps, as WebP."""

    key: str
    """The sample's key."""
    text: str
    """What the first map is of."""
    cosine: float
    """Of the image with its text."""
    peak: float
    """The most that one patch adds to that cosine."""
    shares: tuple[float, float]
    """The smallest and the largest share of a patch in what the tower pools."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    picture: bytes
    """What the model sees of the image."""
    text_map: bytes
    """The same under what each patch adds to the cosine, from 0 to the peak; a peak that is next
    to nothing stays dark, see `_brightest`."""
    rollout: bytes
    """The same under the share of each patch in what the tower pools, from the least to the most:
    the shares of a small tower are so nearly equal that a map from 0 would show nothing."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What `look_at` found."""

    num_samples: int
    """Of the whole set."""
    keys: list[str]
    """Of the N images looked at, evenly spaced over the set."""
    texts: list[str]
    """U different texts."""
    text_N: list[int]
    """The text of each image."""
    nearest_N: list[int]
    """The text that is nearest to each image."""
    planes: dict[str, tuple[Tensor, Tensor]]
    """By method, `pca` and `tsne`: points of the images [N, 2] and of the texts [U, 2]."""
    pca_share: float
    """The part of the variance that the plane of PCA holds."""
    sheet: bytes
    """All N images small, in rows of `look_pictures.SHEET_COLUMNS`, as WebP."""
    maps: list[MapExample]
    """Of some of the images, evenly spaced."""


@torch.no_grad()
def look_at(
    encoder: Encoder,
    *,
    source: SampleSource,
    read_text: Callable[[Members], str],
    names: Collection[str] | None = None,
) -> Look:
    """Look at up to MAX_POINTS images of a set, on this process alone.

    Images and texts of a CLIP lie in two cones apart from each other (Liang et al. 2022,
    arXiv:2203.02053), so each kind's mean is taken off before both go onto one plane.

    Args:
        encoder: with a whole model and without a group.
        source: the images.
        read_text: the text of a sample.
        names: the files or fields of the .json that it looks at; None: all files.

    Raises:
        UsageError: a sample cannot be used, or a map is not finite.
    """
    assert isinstance(encoder.model, Clip) and encoder.group is None
    numbers = evenly_spaced(source.num_samples, MAX_POINTS)
    transform = eval_transform(encoder.preprocess)
    images, squares, texts = _read(source, numbers, transform, read_text, names)
    pixels_NCHW = torch.stack(squares)
    image_NE = torch.cat([encode_image_batch(encoder, some) for some in pixels_NCHW.split(64)])
    distinct = list(dict.fromkeys(texts))
    text_UE = encode_texts(encoder, distinct)
    joint_ME = torch.cat([image_NE - image_NE.mean(0), text_UE - text_UE.mean(0)]).cpu()
    pca_M2, pca_share = principal_plane(joint_ME)
    planes = {"pca": pca_M2, "tsne": neighbour_plane(joint_ME)}
    own = {text: number for number, text in enumerate(distinct)}
    shown = evenly_spaced(len(numbers), MAX_MAPS)
    keys = [source.key(number) for number in numbers]
    maps = _maps(
        encoder,
        keys=[keys[place] for place in shown],
        pictures=[seen_part(x, transform.seen_region(*x.size)) for x in (images[i] for i in shown)],
        pixels_BCHW=pixels_NCHW[shown],
        texts=[texts[place] for place in shown],
    )
    return Look(
        num_samples=source.num_samples,
        keys=keys,
        texts=distinct,
        text_N=[own[text] for text in texts],
        nearest_N=(image_NE @ text_UE.T).argmax(1).tolist(),
        planes={name: (x_M2[: len(keys)], x_M2[len(keys) :]) for name, x_M2 in planes.items()},
        pca_share=pca_share,
        sheet=draw_sheet(images),
        maps=maps,
    )


def evenly_spaced(num: int, most: int) -> list[int]:
    """At most `most` of the numbers below `num`, the middles of equal stretches."""
    count = min(num, most)
    return [(2 * place + 1) * num // (2 * count) for place in range(count)]


def _read(
    source: SampleSource,
    numbers: Sequence[int],
    transform: EvalTransform,
    read_text: Callable[[Members], str],
    names: Collection[str] | None,
) -> tuple[list[Image.Image], list[Tensor], list[str]]:
    """Samples' images, what the model sees of them, and their texts."""
    images: list[Image.Image] = []
    squares: list[Tensor] = []
    texts: list[str] = []
    for number in numbers:
        try:
            members = read_members(source, number, names, or_json=True)
            image = decode_sample(members)
            squares.append(transform(image))
            images.append(image)
            texts.append(read_text(members))
        except (SampleError, OSError, ValueError) as error:
            name = f"sample {source.key(number)} of {source.place(number)}"
            raise UsageError(f"{name} cannot be shown: {error}") from error
    return images, squares, texts


def _maps(
    encoder: Encoder,
    *,
    keys: Sequence[str],
    pictures: Sequence[Image.Image],
    pixels_BCHW: Tensor,
    texts: Sequence[str],
) -> list[MapExample]:
    assert isinstance(encoder.model, Clip)
    if not has_maps(encoder.model):
        return []
    pixels_BCHW = pixels_BCHW.to(encoder.device)
    read = read_images(encoder.model, pixels_BCHW)
    text_BE = encode_texts(encoder, texts)
    cosine_B = (read.feature_BE * text_BE).sum(1).tolist()
    adds_BRC = text_maps(encoder.model, read, text_BE).cpu()
    share_BRC = attention_rollout(encoder.model, pixels_BCHW).cpu()
    refuse_undrawable(adds_BRC, share_BRC)
    return [
        MapExample(
            key=key,
            text=text,
            cosine=cosine,
            peak=float(adds_RC.max()),
            shares=(float(share_RC.min()), float(share_RC.max())),
            grid=read.grid,
            picture=to_webp(picture),
            text_map=draw_heat(picture, adds_RC, low=0.0, high=_brightest(adds_RC, adds_BRC)),
            rollout=draw_heat(picture, share_RC, low=float(share_RC.min())),
        )
        for key, text, cosine, picture, adds_RC, share_RC in zip(
            keys, texts, cosine_B, pictures, adds_BRC, share_BRC, strict=True
        )
    ]


def _brightest(adds_RC: Tensor, adds_BRC: Tensor) -> float:
    """What a map's brightest colour stands for: its own peak, unless that is a tenth of the largest
    peak, or would be written as +0.000: a map of nothing must not glow."""
    return max(float(adds_RC.max()), float(adds_BRC.max()) / 10, _COUNTS)
