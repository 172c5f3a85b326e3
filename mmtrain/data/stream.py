"""Shards that can only be read from their beginning: pipes, and servers without ranges.

Each is taken whole into a temporary file before any of its samples is handed on, so that its tar is
read as strictly as any other. The order is a seeded one of shards, mixed by a buffer: exact to the
shard, not to the sample; what can be indexed is better opened by `open_loader`.
"""

import contextlib
import errno
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline

from mmtrain.data.mapped import Map, keep_files
from mmtrain.data.order.plan import EpochPlan
from mmtrain.data.sample_error import SampleError
from mmtrain.data.shards.index import ShardIndex, build_index
from mmtrain.data.shards.patterns import expand_braces
from mmtrain.data.storage.addresses import scheme_of
from mmtrain.data.storage.file import LocalFile
from mmtrain.data.storage.one_way import take_whole
from mmtrain.data.storage.patience import may_pass, patience, patiently
from mmtrain.errors import UsageError
from mmtrain.settings.paths import refuse_secrets

PIPE = "pipe:"


class StreamPlace(NamedTuple):
    """Where a stream stands."""

    epoch: int
    """That it goes on with, from 0."""
    done: list[int]
    """Numbers of its shards that were handed on whole in this epoch."""


class Stream:
    """Samples of this rank's share of the shards; made by `open_stream`.

    Iterating gives the rest of the epoch, iterating again the next one. A state knows the shards of
    which every sample was handed on; those that were begun come again whole.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        map: Map,
        seed: int,
        buffer: int,
        rank: int,
        world_size: int,
        key: str = "train",
        retry_seconds: float | None = None,
    ) -> None:
        self._key, self._seconds = key, patience(retry_seconds)
        self.urls: tuple[str, ...] = tuple(urls)
        self._map, self._seed, self._buffer = map, seed, buffer
        self.rank: int = rank
        self._world_size = world_size
        self.epoch: int = 0
        """That iterating goes on with, from 0."""
        self.bad: Counter[str] = Counter()
        """Samples left out because `map` refused them, by reason."""
        self._done: set[int] = set()

    def __iter__(self) -> Generator[Any, None, None]:
        """The rest of this epoch.

        Raises:
            UsageError: a shard cannot be read, or is damaged.
        """
        left: Counter[int] = Counter()
        whole: set[int] = set()
        rng = random.Random(f"{self._seed} {self.epoch} {self.rank}")
        samples = self._samples(left, whole)
        pipeline = DataPipeline(
            lambda: samples,
            shuffle(self._buffer, initial=self._buffer, rng=rng),
        )
        with contextlib.closing(samples):
            yield from self._made(pipeline, left, whole)
        self.epoch, self._done = self.epoch + 1, set()

    def _made(self, pipeline: Iterable[Any], left: Counter[int], whole: set[int]) -> Iterator[Any]:
        """What `map` makes of the samples; a shard is done when all of its were handed on."""
        for shard, files in pipeline:
            left[shard] -= 1
            if shard in whole and not left[shard]:
                self._done.add(shard)
            try:
                made = self._map(files)
            except SampleError as error:
                self.bad[str(error)] += 1
                continue
            yield made

    def _samples(
        self, left: Counter[int], whole: set[int]
    ) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """Each sample with the number of its shard; counted as they go into the buffer."""
        order = EpochPlan([len(self.urls)], seed=self._seed, shuffle_group=1)
        shards = [order.sample(self.epoch, place) for place in range(len(self.urls))]
        for shard in shards[self.rank :: self._world_size]:
            if shard in self._done:
                continue
            with contextlib.closing(
                read_shard(self.urls[shard], key=self._key, seconds=self._seconds)
            ) as shard_files:
                for files in shard_files:
                    left[shard] += 1
                    yield shard, files
            whole.add(shard)
            if not left[shard]:
                self._done.add(shard)

    def place(self) -> StreamPlace:
        """Where it stands."""
        return StreamPlace(self.epoch, sorted(self._done))

    def go_on(self, place: StreamPlace) -> None:
        """Go on there."""
        self.epoch, self._done = place.epoch, set(place.done)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and the shards that were handed on whole, as plain JSON."""
        return {
            **self.place()._asdict(),
            "seed": self._seed,
            "urls": list(self.urls),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the shards that are left; with as many ranks as before.

        Raises:
            UsageError: it is of other shards, or of another seed.
        """
        if (state["seed"], state["urls"]) != (self._seed, list(self.urls)):
            raise UsageError("the state is of other shards or of another seed; open it as it was")
        self.go_on(StreamPlace(state["epoch"], state["done"]))


def open_stream(
    train: str | Sequence[str],
    *,
    map: Map = keep_files,
    seed: int = 0,
    buffer: int = 1000,
    allow_pipe: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
    retry_seconds: float | None = None,
) -> Stream:
    """Open shards that cannot be indexed, for a trainer of your own; see the module.

    Args:
        train: paths, addresses or, with `allow_pipe`, `pipe:COMMAND`; brace ranges, or a list.
        map: a sample's files, as `open_loader` gives them, -> anything.
        seed: of the order.
        buffer: samples that are mixed with each other.
        allow_pipe: let a shell run what stands behind `pipe:`.
        rank: this data-parallel rank, which reads its share of the shards; None:
            torch.distributed's, or 0.
        world_size: how many there are.
        retry_seconds: how long a shard that breaks off is taken anew; None: 10.

    Raises:
        UsageError: a command that is not allowed, or fewer shards than ranks.
    """
    urls = expand_stream(train, key="train", lets="" if allow_pipe else "allow_pipe = True")
    if buffer < 1:
        raise UsageError(f"buffer = {buffer} must be at least 1")
    alone = not (dist.is_available() and dist.is_initialized())
    rank = (0 if alone else dist.get_rank()) if rank is None else rank
    world_size = (1 if alone else dist.get_world_size()) if world_size is None else world_size
    if not 0 <= rank < world_size <= len(urls):
        raise UsageError(
            f"rank = {rank}, world_size = {world_size}: {len(urls)} shards are shared out whole; "
            "use no more ranks than shards"
        )
    return Stream(
        urls,
        map=map,
        seed=seed,
        buffer=buffer,
        rank=rank,
        world_size=world_size,
        retry_seconds=retry_seconds,
    )


def expand_stream(train: str | Sequence[str], *, key: str, lets: str) -> tuple[str, ...]:
    """The shards of a stream: brace ranges spelled out.

    Args:
        train: see `open_stream`.
        key: the setting that it comes from, for messages.
        lets: the setting that lets a command run; empty: it does already.

    Raises:
        UsageError: a command that is not allowed, an address with a secret, or none at all.
    """
    patterns = (train,) if isinstance(train, str) else tuple(train)
    for each in patterns:
        refuse_secrets(each, key)
    urls = tuple(url for each in patterns for url in expand_braces(each))
    command = next((url for url in urls if url.startswith(PIPE)), None)
    if command and lets:
        raise UsageError(f"{key} = {command} runs a command; {lets} lets it")
    for url in urls:
        if scheme_of(url) not in ("", "pipe", "http", "https"):
            raise UsageError(f"{key} = {url}: a store is read by ranges; leave out data.stream")
        if not scheme_of(url) and not Path(url).is_file():
            raise UsageError(f"{key} = {url}: there is no such shard; a stream takes no globs")
    return urls


def read_shard(url: str, *, key: str, seconds: float) -> Generator[dict[str, Any], None, None]:
    """The samples of a shard as webdataset gives them, in its order.

    It is whole before the first is handed on; what breaks off is told and taken anew, so no sample
    comes twice.

    Args:
        url: of the shard.
        key: the setting that it comes from, for messages.
        seconds: how long a fault is given to pass.

    Raises:
        UsageError: it cannot be had whole, or is damaged.
    """
    told: list[str] = []

    def again(error: OSError) -> bool:
        if may_pass(error) and not told:
            told.append(f"{key}: {url}: {error.strerror}; taken anew")
            print(f"mmtrain: {told[0]}", file=sys.stderr, flush=True)
        return may_pass(error)

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "shard.tar"
        try:
            patiently(partial(_take, url, place), seconds=seconds, again=again)
        except _BrokeOffError:
            pass  # told below, of what there is
        except OSError as error:
            setting = "data.retry_seconds" if key.startswith("data.") else "retry_seconds"
            waited = f", tried for {seconds:g} s ({setting})" if may_pass(error) else ""
            raise UsageError(
                f"{key}: {url} cannot be read: {error.strerror or error}{waited}"
            ) from error
        with LocalFile(str(place)) as tar:
            index = build_index(tar, crc=False)
            if index.summary.damage:
                raise UsageError(f"{key}: {url} {_told_damage(index)}")
            for sample in range(index.summary.num_samples):
                members = index.members(sample).items()
                files = {name: tar.read(each.offset, each.size) for name, each in members}
                yield {"__key__": index.key(sample), "__url__": url, **files}


def _take(url: str, place: Path) -> None:
    """All of a shard; a command whose output ends within a tar has broken off, whatever it says."""
    take_whole(url, place)
    if url.startswith(PIPE):
        with LocalFile(str(place)) as tar:
            index = build_index(tar, crc=False)
        if index.summary.damage:
            raise _BrokeOffError(errno.EIO, _told_damage(index))


class _BrokeOffError(OSError):
    """A command's output ends within a tar."""


def _told_damage(index: ShardIndex) -> str:
    first = index.summary.damage[0]
    return f"at byte {first.offset}: {first.reason}"
