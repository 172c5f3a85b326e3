"""A suite's folder: who writes it, and what of the table is done already.

suite.lock                     held by the process that writes
features/                      features of sets, by weights, preprocessing and data
results/MODEL/NAME.json        what each evaluation found, as `mmtrain eval` writes it
cells/MODEL/NAME.json          its metrics; there when the result is whole
table.json, table.csv          the table
table.html                     the same as a page
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmtrain.data.feature_files import read_json
from mmtrain.errors import UsageError
from mmtrain.eval.result import EvalResult, write_result
from mmtrain.files import replace_file
from mmtrain.suite.measures import Measure

_LOCK = "suite.lock"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an evaluation found of a model."""

    num_samples: int
    """Images or questions that it is over."""
    metrics: Mapping[str, Measure]
    """By name."""


@dataclass(frozen=True, kw_only=True)
class SuiteFolder:
    """Where one suite or several are written to."""

    path: Path
    """The folder."""

    def lock(self) -> int:
        """Make the folder and take it for this process -> what holds it, until it is closed or the
        process ends.

        Raises:
            UsageError: another process writes it, it holds other things, or it cannot be written.
        """
        place = self.path / _LOCK
        try:
            # Listed at once: another process may be making the lock in an empty folder.
            names = [path.name for path in self.path.iterdir()] if self.path.exists() else []
            if names and _LOCK not in names:
                raise UsageError(f"out = {self.path} holds other things already; name a new folder")
            self.path.mkdir(parents=True, exist_ok=True)
            held = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UsageError(f"out = {self.path} cannot be written: {error.strerror}") from error
        try:
            # Of the process, not of the file as flock: a killed one's workers hold nothing.
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(held)
            raise UsageError(
                f"out = {self.path} is being written by another process; wait for it, or name "
                "another folder"
            ) from None
        except OSError as error:
            os.close(held)
            raise UsageError(
                f"out = {self.path} cannot be locked ({error.strerror}); name a folder on a disk "
                "that can"
            ) from error
        return held

    @property
    def features(self) -> Path:
        """Of the features."""
        return self.path / "features"

    def read_cell(self, model: str, name: str, key: str) -> Found | None:
        """What an evaluation found of a model; None: it is not done, or was of something else."""
        try:
            told = read_json(self._cell(model, name))
            if told["key"] != key:
                return None
            metrics = {metric: Measure(*numbers) for metric, numbers in told["metrics"].items()}
            return Found(num_samples=int(told["num_samples"]), metrics=metrics)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None  # it is made again

    def write_cell(
        self, model: str, name: str, key: str, *, result: EvalResult, found: Found
    ) -> None:
        """Write a result, then what the table takes of it, which says that it is whole.

        Raises:
            OSError, UsageError: one cannot be written.
        """
        cell = self._cell(model, name)
        cell.unlink(missing_ok=True)
        write_result(self.path / "results" / model / f"{name}.json", result)
        cell.parent.mkdir(parents=True, exist_ok=True)
        replace_file(cell, json.dumps({"key": key, **asdict(found)}, indent=1) + "\n")

    def _cell(self, model: str, name: str) -> Path:
        return self.path / "cells" / model / f"{name}.json"


def digest(told: Any) -> str:
    """A short name of anything that JSON takes."""
    text = json.dumps(told, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def file_name(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"
