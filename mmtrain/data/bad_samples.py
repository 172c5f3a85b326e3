"""The bad samples of a run: counted by reason, named in a file, and only so many allowed."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from mmtrain.data.batch import BadSample
from mmtrain.errors import UsageError
from mmtrain.files import parse_json, replace_file

BAD_SAMPLES_FILE = "bad_samples.jsonl"

AT_LEAST = 1000
"""Reads that the limit is a fraction of, at least: one bad sample among a few says nothing."""

MOST_LISTED = 10_000
"""Different samples that a checkpoint names at most; the file in the run's folder names all."""

Gather = Callable[[tuple[BadSample, ...]], list[tuple[BadSample, ...]]]


class Met(NamedTuple):
    """A sample that a run could not use, and why."""

    source: str
    shard: str
    key: str
    reason: str
    detail: str

    @classmethod
    def of(cls, sample: BadSample) -> "Met":
        """Without what it was read for."""
        return cls(sample.source, sample.shard, sample.key, sample.reason, sample.detail)


def listed(state: Mapping[str, Any]) -> dict[Met, int]:
    """The samples in a checkpoint's state of the log, and how often each was met."""
    return {Met(*names): times for *names, times in state.get("samples", ())}


class BadSampleLog:
    """Counts what was replaced, names it in a file, stops the run above a limit.

    All ranks stop in the same step because all of them count the same rows. Either `gather` brings
    these together (`record` is collective then), or whoever calls hands in the rows of all ranks.
    Ranks that hold the same rows, as those of one data-parallel coordinate do, count once.

    Args:
        path: RUN/bad_samples.jsonl, written as the samples come; None on all ranks but one.
        max_bad_fraction: how many of the samples read may be bad, judged over 1000 at least.
        gather: every rank's value, on every rank; None: `record` is given all ranks' rows.
    """

    def __init__(
        self, path: Path | None, *, max_bad_fraction: float, gather: Gather | None = None
    ) -> None:
        self._path, self._max_bad_fraction, self._gather = path, max_bad_fraction, gather
        self._reasons: Counter[str] = Counter()
        self._met: Counter[Met] = Counter()
        self._num_rows, self._last_step = 0, -1

    @property
    def num_bad(self) -> int:
        """Bad samples met so far."""
        return self._reasons.total()

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason was met, the most frequent first."""
        return dict(self._reasons.most_common())

    def record(
        self,
        batch_bad: Iterable[BadSample],
        *,
        num_rows: int,
        step: int,
        anywhere: bool = True,
    ) -> None:
        """Count what one step read.

        Args:
            batch_bad: `ImageTextBatch.bad`, of this rank where there is a `gather`, else of all.
            num_rows: usable rows of the *global* batch.
            step: updates done before this one; it never falls.
            anywhere: whether any rank has bad samples, the same on every rank; if none has, nothing
                is brought together.

        Raises:
            UsageError: on every rank, too many samples are bad.
        """
        own = tuple(batch_bad)
        parts = [own] if self._gather is None or not anywhere else self._gather(own)
        bad = list(dict.fromkeys(sample for part in parts for sample in part))
        self._num_rows, self._last_step = self._num_rows + num_rows, step
        self._reasons.update(sample.reason for sample in bad)
        for sample in map(Met.of, bad):
            if sample in self._met or len(self._met) < MOST_LISTED:
                self._met[sample] += 1
        if bad and self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.writelines(_line(sample, step) for sample in bad)
        num_read = self._num_rows + self.num_bad
        if self.num_bad > self._max_bad_fraction * max(num_read, AT_LEAST):
            raise UsageError(self._too_many(num_read, bad))

    def _too_many(self, num_read: int, bad: list[BadSample]) -> str:
        counts = ", ".join(f"{reason}: {count}" for reason, count in self._reasons.most_common())
        last = f"; the last is {bad[-1]}" if bad else ""
        return (
            f"data.max_bad_fraction = {self._max_bad_fraction:g}: {self.num_bad} of the "
            f"{num_read} samples read are bad ({counts}{last}), all named in {BAD_SAMPLES_FILE} of "
            "the run's folder; mend the shards, or allow more"
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts as plain JSON."""
        return {
            "reasons": dict(self._reasons),
            "num_rows": self._num_rows,
            "last_step": self._last_step,
            "samples": [[*sample, times] for sample, times in self._met.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from a checkpoint; lines of later steps, which come again, are dropped."""
        self._reasons = Counter(state["reasons"])
        self._num_rows, self._last_step = state["num_rows"], state["last_step"]
        # Absent in older checkpoints.
        self._met = Counter(listed(state))
        if self._path is not None and self._path.exists():
            replace_file(self._path, "".join(_lines_until(self._path, self._last_step)))


def _line(sample: BadSample, step: int) -> str:
    row = {"step": step} | asdict(sample)
    for name in ("detail", "source", "is_replacement"):
        if not row[name]:
            del row[name]
    return json.dumps(row) + "\n"


def _lines_until(path: Path, last_step: int) -> Iterable[str]:
    """The whole lines of steps up to one; a kill may have cut the last line short."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("step", last_step + 1) <= last_step:
            yield line + "\n"
