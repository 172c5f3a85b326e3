"""A folder of embeddings: its files, what of them is there, and whose they are.

features-00000.npy    [n, E] unit-norm features of the images of a piece
keys-00000.json       the samples' keys, a row each
                      (both in features-00000.parquet on request, see mmtrain/data/feature_files.py)
skipped-00000.json    samples of the piece without a row, and why; only if there are any
embed.json            what was embedded with what; there when all is done
"""

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain.data.feature_files import (
    DONE_FILE,
    PARTIAL_FILE,
    features_file,
    piece_digest,
    read_json,
    read_piece,
    write_piece,
)
from mmtrain.data.fingerprint import same_data
from mmtrain.errors import UsageError
from mmtrain.files import create_file, other_files, replace_file

_SAME_JOB = (
    "num_samples",
    "piece",
    "dtype",
    "format",
    "data_fingerprint",
    "model_fingerprint",
    "preprocess",
    "precision",
)
"""With any of these changed, a piece would hold something else."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample without a row."""

    key: str
    """The sample's key."""
    place: str
    """Its shard, or FILE:LINE of its row."""
    reason: str
    """Why it has none."""


@dataclass(frozen=True, kw_only=True)
class EmbedFolder:
    """Where pieces are written to."""

    path: Path
    """The folder."""
    job: dict[str, Any]
    """What is embedded with what, as embed.json tells it."""
    num_pieces: int
    """Of the whole set."""

    def begin(self) -> list[int]:
        """Make the folder, or go on in it: the numbers of the pieces that are missing.

        Raises:
            UsageError: it holds another job's embeddings or other things, or a piece is damaged.
        """
        names = other_files(self.path, PARTIAL_FILE) if self.path.is_dir() else set()
        if names.isdisjoint({DONE_FILE, PARTIAL_FILE}):
            if names or (self.path.exists() and not self.path.is_dir()):
                raise UsageError(f"out = {self.path} holds other things already; name a new folder")
            self.path.mkdir(parents=True, exist_ok=True)
            create_file(self.path / PARTIAL_FILE, _json(self.job))
        for name in (PARTIAL_FILE, DONE_FILE):
            # Either may be missing, and a machine that ends the job removes the first.
            with contextlib.suppress(FileNotFoundError):
                self._refuse_other_job(self.path / name)
        digests = self._digests()
        return [number for number in range(self.num_pieces) if not self._has(number, digests)]

    def _digests(self) -> Sequence[str]:
        """Of the pieces when all of them were there; nothing before that."""
        path = self.path / DONE_FILE
        told = read_json(path).get("digests") if path.is_file() else None
        return told if isinstance(told, list) else []

    def _has(self, number: int, digests: Sequence[str]) -> bool:
        path = features_file(self.path, number, self.job["format"])
        if not path.is_file():
            return False
        try:
            features_NE, keys = read_piece(path, dtype=self.job["dtype"])
            self._check_rows(number, len(keys))
            if number < len(digests) and piece_digest(features_NE, keys) != digests[number]:
                raise ValueError(f"{path.name} and its keys are not the piece that was written")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"out = {self.path}: a piece is damaged ({error}); remove {path.name}, and the "
                "same command embeds that piece again"
            ) from error
        return True

    def _check_rows(self, number: int, num_rows: int) -> None:
        """Each sample of a piece has a row or is told as skipped."""
        num_skipped = self._num_skipped(number)
        first = number * self.job["piece"]
        size = min(self.job["piece"], self.job["num_samples"] - first)
        if num_rows + num_skipped != size:
            raise ValueError(
                f"{num_rows} rows and {num_skipped} in {self._skipped_file(number).name} are not "
                f"its {size} samples"
            )

    def _num_skipped(self, number: int) -> int:
        file = self._skipped_file(number)
        if not file.is_file():
            return 0
        skipped = read_json(file)
        if not isinstance(skipped, list):
            raise ValueError(f"{file.name} is no list")
        return len(skipped)

    def _refuse_other_job(self, described: Path) -> None:
        try:
            before = read_json(described)
            other = [key for key in _SAME_JOB if not self._is_same(key, before.get(key))]
        except (ValueError, AttributeError) as error:
            raise UsageError(f"{described} is damaged ({error}); name a new folder") from error
        if other:
            raise UsageError(
                f"out = {self.path} holds embeddings made with another {', '.join(other)}; name a "
                "new folder"
            )

    def _is_same(self, key: str, before: Any) -> bool:
        if key == "data_fingerprint":
            return same_data(str(before), self.job[key])
        return before == self.job[key]

    def save(
        self, number: int, features: np.ndarray, keys: Sequence[str], skipped: Sequence[Skipped]
    ) -> None:
        """Write a piece, the features last: a piece that has them is whole."""
        file = self._skipped_file(number)
        if skipped:
            _write_json(file, [asdict(each) for each in skipped])
        else:
            file.unlink(missing_ok=True)
        path = features_file(self.path, number, self.job["format"])
        write_piece(path, features.astype(self.job["dtype"]), keys)

    def num_skipped(self, numbers: Iterable[int]) -> int:
        """Samples of some pieces that have no row."""
        return sum(map(self._num_skipped, numbers))

    def finish(self) -> int:
        """Say that all pieces are there: the number of skipped samples."""
        numbers = range(self.num_pieces)
        num_skipped = self.num_skipped(numbers)
        files = (features_file(self.path, number, self.job["format"]) for number in numbers)
        counts = {
            "num_rows": self.job["num_samples"] - num_skipped,
            "num_skipped": num_skipped,
            "num_pieces": self.num_pieces,
            "digests": [piece_digest(*read_piece(file)) for file in files],
        }
        _write_json(self.path / DONE_FILE, self.job | counts)
        (self.path / PARTIAL_FILE).unlink(missing_ok=True)
        return num_skipped

    def _skipped_file(self, number: int) -> Path:
        return self.path / f"skipped-{number:05d}.json"


def _write_json(path: Path, content: Any) -> None:
    replace_file(path, _json(content))


def _json(content: Any) -> str:
    return json.dumps(content, indent=1) + "\n"
