"""Shards made of any source, several at once, and gone on with where a call was interrupted.

Which samples a shard holds is told beforehand by the number of samples, so shards are made apart
from each other: by processes, by machines (`part`), by calls. A sample that cannot be used leaves
its shard one shorter.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain.data.making.contents import contents
from mmtrain.data.making.keys import Keys
from mmtrain.data.order.plan import EpochPlan
from mmtrain.data.sample_check import Unusable
from mmtrain.data.sample_error import IncompleteError, SampleError
from mmtrain.data.shards.tar_header import BLOCK
from mmtrain.data.shards.write import write_shard
from mmtrain.data.sources.open import explained
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.storage.patience import patience, patiently
from mmtrain.data.workers import iterate_batches
from mmtrain.errors import UsageError
from mmtrain.files import create_file, other_files, parse_json, remove_partials

JOB = "make.json"
"""Says of what the shards beside it are being made."""
_NUM_PROBES = 256
"""Samples whose sizes tell how many make up a shard."""


@dataclass(frozen=True, kw_only=True)
class MakeConfig:
    """How shards are made of samples."""

    samples_per_shard: int
    """Samples of each but the last one."""
    captions: tuple[str, ...] = ("txt",)
    """Places where captions are, as `data.captions`; empty: images alone are enough."""
    caption_lines: bool = False
    """Every line of a text is a caption."""
    seed: int | None = 0
    """Of the order of samples; None: as the source has them."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What one shard came to."""

    path: Path
    """Where it is, or would be."""
    num_samples: int
    """Samples that it holds; 0: it was not written."""
    num_read: int
    """Samples that it was to hold."""
    unusable: list[Unusable] = field(default_factory=list)
    """Samples of it that cannot be used."""

    def pin_memory(self) -> "Made":
        """Itself: it holds no tensors."""
        return self


class ShardMaker:
    """Makes any of the shards of one set.

    Args:
        source: the samples.
        out: the folder of the shards; there must be one.
        config: how.
        skip_bad: write a shard without the samples that cannot be used; else it is not written.
        keys: of the source; None: they are made here.
        numbers: which samples; None: all.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        out: Path,
        config: MakeConfig,
        skip_bad: bool = False,
        keys: Keys | None = None,
        numbers: np.ndarray | None = None,
    ) -> None:
        self.out, self.config = out, config
        self._source, self.skip_bad = source, skip_bad
        self._keys = keys or Keys(source)
        self.numbers = self._keys.numbers if numbers is None else numbers
        if config.seed is not None:
            order = EpochPlan([self.numbers.size], seed=config.seed, shuffle_group=1)
            self.numbers = self.numbers[order.samples(0, np.arange(self.numbers.size))]
        self.num_shards = -(-self.numbers.size // config.samples_per_shard)

    def path(self, shard: int) -> Path:
        """Of a shard by its number."""
        return self.out / f"{shard:05}.tar"

    def batch(self, shard: int) -> Made:
        """Make one shard.

        Raises:
            UsageError: a file cannot be read or written.
        """
        size, path = self.config.samples_per_shard, self.path(shard)
        samples = self.numbers[shard * size : (shard + 1) * size].tolist()
        unusable: list[Unusable] = []
        try:
            write_shard(path, self._contents(samples, unusable))
        except _NotWritten:
            return Made(path=path, num_samples=0, num_read=len(samples), unusable=unusable)
        except OSError as error:
            told = error.strerror or str(error)
            raise UsageError(
                f"{error.filename or path}: {told}; mend that, and the same command goes on"
            ) from error
        return Made(
            path=path,
            num_samples=len(samples) - len(unusable),
            num_read=len(samples),
            unusable=unusable,
        )

    def _contents(
        self, samples: Sequence[int], unusable: list[Unusable]
    ) -> Iterator[tuple[str, dict[str, bytes]]]:
        for sample in samples:
            key = self._keys[sample]
            try:
                yield key, self._files(sample, key)
            except SampleError as error:
                unusable.append(self._unusable(sample, error))
        if len(unusable) == len(samples) or (unusable and not self.skip_bad):
            raise _NotWritten

    def _files(self, sample: int, key: str) -> dict[str, bytes]:
        rows = [sample, *self._keys.also.get(sample, ())]
        try:
            return contents(
                [self._read(row, image=row == sample) for row in rows],
                name=self._source.key(sample),
                key=key,
                captions=self.config.captions,
                caption_lines=self.config.caption_lines,
            )
        except IncompleteError as error:
            raise explained(error, self._source, sample) from error

    def _read(self, sample: int, *, image: bool) -> dict[str, bytes]:
        wanted = None if image else ("txt", "json")
        return patiently(lambda: self._source.read(sample, wanted), seconds=patience())

    def _unusable(self, sample: int, error: SampleError) -> Unusable:
        return Unusable(
            key=self._source.key(sample),
            place=self._source.place(sample),
            reason=str(error),
            detail=error.detail,
        )


class _NotWritten(Exception):
    """A shard has nothing to hold, or something that it must not pass over."""


def make_shards(
    maker: ShardMaker,
    *,
    job: dict[str, Any],
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Made]:
    """Make what is missing of the shards -> what this call made.

    Args:
        maker: makes each.
        job: tells this set from any other; kept beside the shards.
        part: number and count of equal parts, of which one is made.
        workers: processes that make shards; 0: this one.
        progress: told how many shards of the part are there, of how many.

    Raises:
        UsageError: the folder holds something else, a file cannot be read or written.
    """
    _begin(maker.out, job)
    shards = range(part[0], maker.num_shards, part[1])
    missing = _Listed(maker, [shard for shard in shards if not maker.path(shard).exists()])
    made: list[Made] = []
    for one in iterate_batches(
        missing, 0, len(missing.shards), workers=workers, prefetch=1, pin_memory=False
    ):
        made.append(one)
        if len(one.unusable) == one.num_read and not maker.skip_bad:
            break  # rather a mistake in what is asked of samples than in each of them
        if progress is not None:
            done = sum(each.num_samples > 0 for each in made)
            progress(len(shards) - len(missing.shards) + done, len(shards))
    return made


class _Listed:
    """Some shards, numbered from 0 on."""

    def __init__(self, maker: ShardMaker, shards: list[int]) -> None:
        self._maker, self.shards = maker, shards

    def batch(self, number: int) -> Made:
        """Make the shard of that place in the list."""
        return self._maker.batch(self.shards[number])


def _begin(out: Path, job: dict[str, Any]) -> None:
    """Make the folder, or see that it is one of this job."""
    path = out / JOB
    text = json.dumps(job, indent=1, sort_keys=True) + "\n"
    wanted = json.loads(text)
    names = other_files(out, JOB) if out.is_dir() else set()
    if JOB not in names:
        if names or (out.exists() and not out.is_dir()):
            raise UsageError(f"--out {out} is not empty; name a new folder")
        out.mkdir(parents=True, exist_ok=True)
        create_file(path, text)
    try:
        before = dict(parse_json(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged; name a new folder, or remove this one") from error
    if other := next((k for k in {**before, **wanted} if before.get(k) != wanted.get(k)), ""):
        raise UsageError(
            f"--out {out} was begun with {other} = {before.get(other)}, not "
            f"{wanted.get(other)}; name a new folder, or remove it"
        )
    remove_partials(out)


def mean_bytes(source: SampleSource) -> float:
    """Bytes of a sample in a shard, reckoned from some of them, evenly spread.

    Raises:
        UsageError: none of them can be read.
    """
    sizes: list[int] = []
    for sample in np.linspace(0, source.num_samples - 1, min(_NUM_PROBES, source.num_samples)):
        try:
            files = source.read(int(sample))
        except SampleError:
            continue
        # A header, and content filled up to whole blocks.
        sizes.append(sum(BLOCK + -(-len(content) // BLOCK) * BLOCK for content in files.values()))
    if not sizes:
        raise UsageError(f"{source.place(0)}: no sample can be read; mmtrain data check says why")
    return sum(sizes) / len(sizes)
