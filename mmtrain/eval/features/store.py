"""Image features of whole sets, kept so that every evaluation of a set shares one pass over it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmtrain.data.feature_files import read_job, read_pieces
from mmtrain.data.members import read_members
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder
from mmtrain.eval.features.embed import embed
from mmtrain.eval.result import provenance

PIECE = 4096
"""Samples of a file, which is what a kill loses on each rank; a whole number of forwards."""


PROBED = 128
"""Samples of a set whose bytes tell it from another of the same names and sizes."""


def data_identity(source: SampleSource) -> str:
    """The fingerprint, which is of names and sizes, and a hash of some samples' bytes.

    Raises:
        OSError: one cannot be read.
    """
    digest = hashlib.blake2b(source.fingerprint.encode(), digest_size=16)
    step = max(1, source.num_samples // PROBED)
    for number in range(0, source.num_samples, step):
        try:
            for name, content in sorted(read_members(source, number, None).items()):
                digest.update(f"{number} {name} {len(content)}\n".encode())
                digest.update(content)
        except SampleError as error:
            digest.update(f"{number} {error}\n".encode())
    return digest.hexdigest()


class FeatureStore:
    """A folder with a folder of `embed` for every model and set.

    One is found again by what its features depend on: weights, preprocessing, number format, the
    size of forwards, and the data.

    Args:
        folder: where they are.
        progress: told how many images of a set are through, of how many.
    """

    def __init__(self, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> None:
        self._folder, self._progress = folder, progress
        self._known: list[tuple[SampleSource, str]] = []

    def serve(self, encoder: Encoder) -> Encoder:
        """The encoder, whose evaluations take their features from here; what is missing is made."""
        return replace(encoder, kept=lambda source: self.features(encoder, source))

    def features(self, encoder: Encoder, source: SampleSource) -> Tensor:
        """Unit norm, float32 [N, E] on the CPU, the same on every rank; collective.

        Raises:
            UsageError: on every rank: a sample that cannot be used, a damaged or unwritable folder.
        """
        told = provenance(encoder, source)
        told.pop("versions")
        told["data"] = self._identity(source)
        named = json.dumps(told, sort_keys=True).encode()
        place = self._folder / hashlib.blake2b(named, digest_size=12).hexdigest()
        embed(
            encoder,
            data=source,
            out=place,
            dtype="float32",
            piece=PIECE,
            max_bad_fraction=0.0,
            progress=self._progress,
        )
        try:
            job = read_job(place)
            assert job is not None, "embed has ended it"
            pieces = [features_NE for _, features_NE, _ in read_pieces(place, job)]
        except (OSError, ValueError) as error:
            raise UsageError(
                f"the features in {place} are damaged ({error}); remove that folder, and the same "
                "command makes them again"
            ) from error
        return torch.from_numpy(np.concatenate(pieces))

    def _identity(self, source: SampleSource) -> str:
        for known, identity in self._known:
            if known is source:
                return identity
        self._known.append((source, data_identity(source)))
        return self._known[-1][1]
