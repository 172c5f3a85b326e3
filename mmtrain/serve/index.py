"""The images that the page searches: their features, and the data that hold their pictures."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmtrain.data.config import DataConfig
from mmtrain.data.feature_files import DONE_FILE, is_finished, read_job, read_pieces
from mmtrain.data.images.decode import decode_image
from mmtrain.data.images.transforms import eval_transform
from mmtrain.data.members import image_file, read_members
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder, encode_image_batch
from mmtrain.eval.result import PICTURE_SIDE, thumbnail
from mmtrain.eval.samples import decode_sample
from mmtrain.progress import Progress
from mmtrain.settings.counted import counted

_BLOCK = 1 << 14
_CAPTION_LENGTH = 200
_SAME_FEATURE = 0.98
"""Cosine of one image's features at two precisions; bf16 keeps 0.99."""


class ImageIndex:
    """Images by number, searched by their features. Not safe to use from two threads at once.

    Args:
        source: where the pictures and captions are.
        features: unit-norm, [n, E] each, one after another; float16 or float32, in memory or
            mapped from files.
        samples_N: the number of each image in the source.
    """

    def __init__(
        self, source: SampleSource, features: Sequence[np.ndarray], samples_N: np.ndarray
    ) -> None:
        self._source = source
        self._features = list(features)
        self._samples_N = samples_N
        assert sum(map(len, features)) == len(samples_N)

    @property
    def num_images(self) -> int:
        """How many can be found."""
        return len(self._samples_N)

    def nearest(self, query_E: Tensor, count: int) -> list[tuple[int, float]]:
        """The `count` images of the highest cosine with a unit-norm query, and these cosines.

        Of equal ones the image with the lower number comes first.
        """
        query = query_E.float().cpu().numpy()
        # By blocks: features on disk may be more than fits into memory as fp32.
        score_N = np.concatenate(
            [
                np.asarray(part[first : first + _BLOCK], dtype=np.float32) @ query
                for part in self._features
                for first in range(0, len(part), _BLOCK)
            ]
        )
        best = np.argsort(-score_N, kind="stable")[:count]
        return [(int(number), float(score_N[number])) for number in best]

    def members(self, number: int) -> dict[str, bytes]:
        """An image's file by its extension.

        Raises:
            SampleError, OSError, UsageError: they cannot be read.
        """
        return read_members(self._source, int(self._samples_N[number]))

    def caption(self, number: int) -> str:
        """The text of an image's .txt, or else its key; what cannot be read has none."""
        sample = int(self._samples_N[number])
        try:
            text = self._source.read(sample, {"txt"}).get("txt", b"").decode("utf-8", "replace")
            text = " ".join(text.split()) or self._source.key(sample).rpartition("/")[2]
        except (SampleError, OSError, UsageError):
            return ""
        return text if len(text) <= _CAPTION_LENGTH else f"{text[: _CAPTION_LENGTH - 1]}…"

    def thumbnail(self, number: int) -> bytes:
        """An image as a small WebP.

        Raises:
            SampleError, OSError, UsageError: it cannot be read.
        """
        data = image_file(self.members(number))
        return thumbnail(Image.fromarray(decode_image(data, at_least=PICTURE_SIDE)))


def embed_now(encoder: Encoder, patterns: Sequence[str]) -> ImageIndex:
    """An index made now and kept in memory; images that cannot be used are left out.

    Args:
        encoder: the model.
        patterns: what `data.train` may name: shards, a folder of folders of images and so on.

    Raises:
        UsageError: nothing is there, or no image can be used.
    """
    source = open_source(tuple(patterns), image_key=DataConfig.image_key, key="index")
    transform = eval_transform(encoder.preprocess)
    features: list[np.ndarray] = []
    kept: list[int] = []
    faults: list[str] = []
    with Progress("images") as progress:
        for first in range(0, source.num_samples, encoder.batch_size):
            squares: list[Tensor] = []
            behind = min(first + encoder.batch_size, source.num_samples)
            for number in range(first, behind):
                try:
                    squares.append(transform(decode_sample(read_members(source, number))))
                    kept.append(number)
                except (SampleError, OSError, ValueError) as fault:
                    faults.append(f"sample {number} in {source.place(number)}: {fault}")
            if squares:
                features.append(encode_image_batch(encoder, torch.stack(squares)).cpu().numpy())
            progress(behind, source.num_samples)
    if faults:
        print(f"left out {counted(len(faults), 'image')}, the first: {faults[0]}", file=sys.stderr)
    if not kept:
        raise UsageError(f"index = {' '.join(patterns)}: no image can be used; name others")
    if not all(np.isfinite(part).all() for part in features):
        raise UsageError("the image features are not finite: the weights overflow")
    return ImageIndex(source, features, np.array(kept))


def read_embeddings(encoder: Encoder, folder: Path) -> ImageIndex:
    """An index of features on disk, mapped, not read.

    What is in the folder: `mmtrain/eval/features/embed_folder.py`. Rows are in the order of the
    data, from which samples may be left out.

    Raises:
        UsageError: a file is missing or of another form, the rows are not of that data, or the
            features are not this model's.
    """
    try:
        job = read_job(folder)
        assert job is not None, "the caller looked"
        data, image_key = job["data"], str(job["image_key"])
        if not isinstance(data, str) and not all(isinstance(one, str) for one in [*data]):
            raise TypeError("its data are no paths")
        paths, features, keys = [], [], []
        for path, part, some in read_pieces(folder, job):
            paths.append(path)
            features.append(part)
            keys += some
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"{DONE_FILE} has no {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"index = {folder} cannot be read ({told}); embed the data again, into a new folder"
        ) from error
    patterns = (data,) if isinstance(data, str) else tuple(data)
    if not patterns:
        raise UsageError(f"index = {folder} does not tell its data; embed them by their path")
    source = open_source(patterns, image_key=image_key, key="index")
    samples_N = _places(source, keys)
    if samples_N is None or not keys:
        raise UsageError(
            f"index = {folder}: its rows are not of {' '.join(patterns)} as it is now; embed that "
            "again"
        )
    index = ImageIndex(source, features, samples_N)
    first = 0
    for path, part in zip(paths, features, strict=True):
        if len(part):
            _refuse_other_model(encoder, index, first, part[0], path)
        first += len(part)
    return index


def _places(source: SampleSource, keys: Sequence[str]) -> np.ndarray | None:
    """The number of each row's sample: the next that has its key. None: there is none."""
    places: list[int] = []
    sample = 0
    for key in keys:
        while sample < source.num_samples and source.key(sample) != key:
            sample += 1
        places.append(sample)
        sample += 1
    return np.array(places) if not places or places[-1] < source.num_samples else None


def _refuse_other_model(
    encoder: Encoder, index: ImageIndex, number: int, feature_E: np.ndarray, path: Path
) -> None:
    """Embed a piece's first image again: any other model, or preprocess, puts it elsewhere."""
    folder = path.parent
    try:
        square = eval_transform(encoder.preprocess)(decode_sample(index.members(number)))
    except (SampleError, OSError, ValueError) as error:
        raise UsageError(f"index = {folder}: image {number} cannot be used: {error}") from error
    own_E = encode_image_batch(encoder, square[None])[0].cpu().numpy()
    if own_E.shape != feature_E.shape or float(own_E @ feature_E) < _SAME_FEATURE:
        raise UsageError(
            f"index = {folder}: its features are not of this model in {path.name}; embed the "
            "data with it, into a new folder"
        )


def open_index(encoder: Encoder, index: Sequence[str]) -> ImageIndex:
    """What can be searched: embeddings on disk, or data that is embedded now.

    Raises:
        UsageError: as `read_embeddings` and `embed_now`.
    """
    folder = Path(index[0]).expanduser()
    finished = is_finished(folder) if len(index) == 1 else None
    if finished:
        return read_embeddings(encoder, folder)
    if finished is False:
        raise UsageError(f"index = {folder} is not finished; go on with mmtrain embed")
    return embed_now(encoder, index)
