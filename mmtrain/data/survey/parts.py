"""What machines have found of their shares of the data, as files in a folder, and all of it joined.

stats-00000-of-00004.npz    the columns of a share, and as JSON its counts and what was asked for
"""

import io
import json
import re
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain.data.fingerprint import same_data
from mmtrain.data.survey.piece import COLUMNS, COUNTED, Piece, joined
from mmtrain.errors import UsageError
from mmtrain.files import parse_json, replace_file

_NAME = re.compile(r"stats-(\d{5,})-of-(\d{5,})\.npz")
_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile)
"""What numpy raises at a file that is cut, overwritten or of another kind."""


@dataclass(frozen=True, kw_only=True)
class SurveyJob:
    """What a share is looked at for: other words would give other figures."""

    data_fingerprint: str
    """Of all of the data."""
    image_key: str
    """As data.image_key."""
    captions: tuple[str, ...]
    """Places where captions are."""
    caption_lines: bool
    """Every line of a text is a caption."""
    label_key: str | None
    """Field of the labels."""
    tokenizer: str
    """Fingerprint of what counts tokens."""
    num: int | None
    """Samples that are drawn; None: all."""
    seed: int | None
    """Of the draw; None: there is none."""


class SurveyParts:
    """A folder of shares of one job.

    Args:
        folder: where.
        job: what they are looked at for.
    """

    def __init__(self, folder: Path, job: SurveyJob) -> None:
        self._folder, self._job = folder, json.loads(json.dumps(asdict(job)))

    def begin(self, part: tuple[int, int]) -> None:
        """Make the folder, or see that what is there fits.

        Raises:
            UsageError: it holds shares of another job, or of another number of shares.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--parts {self._folder} cannot be made: {error.strerror}") from error
        for (number, count), path in self._listed().items():
            if (number, count) == part:
                continue
            if count != part[1]:
                raise UsageError(
                    f"--parts {self._folder} holds {path.name}, a share of {count}, not of "
                    f"{part[1]}; name a new folder"
                )
            self._refuse_other_job(path, _read_told(path))
            break

    def write(self, part: tuple[int, int], found: Piece) -> Path:
        """Keep a share -> its file.

        Raises:
            OSError: it cannot be written.
        """
        told = {
            "job": self._job,
            "num_looked": found.num_looked,
            "bad": found.bad,
            **{name: getattr(found, name) for name in COUNTED},
        }
        text = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **found.columns, told=text)
        path = self._folder / f"stats-{part[0]:05}-of-{part[1]:05}.npz"
        replace_file(path, buffer.getvalue())
        return path

    def merged(self) -> Piece:
        """All shares as one.

        Raises:
            UsageError: there are none, some are missing, damaged or of another job.
        """
        if not self._folder.is_dir():
            raise UsageError(f"--parts {self._folder} is no folder; name the one of --shard-range")
        found = self._listed()
        counts = sorted({count for _, count in found})
        if not counts:
            raise UsageError(
                f"--parts {self._folder} holds no shares; make them with --shard-range"
            )
        if len(counts) > 1:
            raise UsageError(
                f"--parts {self._folder} holds shares of {' and of '.join(map(str, counts))}, "
                "which count samples twice; remove those that are not meant"
            )
        every = [(number, counts[0]) for number in range(counts[0])]
        if missing := [
            f"{number}/{count}" for number, count in every if (number, count) not in found
        ]:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise UsageError(
                f"--parts {self._folder}: --shard-range {', '.join(missing[:8])}{more} is missing; "
                "make it there, then merge"
            )
        return joined(self._read(found[part]) for part in every)

    def _listed(self) -> dict[tuple[int, int], Path]:
        named = ((_NAME.fullmatch(path.name), path) for path in sorted(self._folder.iterdir()))
        return {(int(name[1]), int(name[2])): path for name, path in named if name is not None}

    def _read(self, path: Path) -> Piece:
        told = _read_told(path)
        self._refuse_other_job(path, told)
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                columns = {name: file[name] for name in COLUMNS}
        except _DAMAGE as error:
            raise _damaged(path) from error
        counted = {name: Counter(told[name]) for name in COUNTED}
        return Piece(num_looked=told["num_looked"], bad=told["bad"], columns=columns, **counted)

    def _refuse_other_job(self, path: Path, told: dict[str, Any]) -> None:
        before = told["job"]
        for key, wanted in self._job.items():
            found = before.get(key)
            if key == "data_fingerprint":
                if not same_data(str(found), wanted):
                    raise UsageError(
                        f"{path} is of other data, or of these before they changed; remove it, or "
                        "name another folder as --parts"
                    )
            elif found != wanted:
                raise UsageError(
                    f"{path} was made with {_told(key, found)}, not {_told(key, wanted)}; give the "
                    "same options, or name another folder as --parts"
                )


def _told(key: str, value: object) -> str:
    """A setting of a job as it is typed."""
    option = f"--{key.replace('_', '-')}"
    if key == "tokenizer":
        return f"another {option}"
    if value in (None, False, []):
        return "--no-captions" if key == "captions" else f"no {option}"
    words = value if isinstance(value, list) else [] if value is True else [value]
    return " ".join([option, *map(str, words)])


def _read_told(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            told = parse_json(file["told"].tobytes())
        missing = {"job", "num_looked", "bad", *COUNTED} - told.keys()
    except _DAMAGE as error:
        raise _damaged(path) from error
    if missing:
        raise _damaged(path)
    return told


def _damaged(path: Path) -> UsageError:
    return UsageError(f"{path} is damaged; remove it, and make that share again")
