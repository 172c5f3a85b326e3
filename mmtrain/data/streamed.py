"""Training on shards that can only be read from their beginning; see stream.py.

A process has its own shards and makes the batches whose turn is its own, of what comes next. So a
batch is no function of its number, and says where its process stood behind it: a run goes on with
the shards that were not handed on whole, those that were begun from their beginning.
"""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from mmtrain.data.batch import BadSample, ImageTextBatch
from mmtrain.data.config import DataConfig
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.images.transforms import TrainTransform
from mmtrain.data.members import UNIQUE, StoredFeatures
from mmtrain.data.mixture import SourceSettings
from mmtrain.data.numbered import NumberedData
from mmtrain.data.order.batch_sizes import BatchSizes
from mmtrain.data.order.batches import Rows, rows_of_rank
from mmtrain.data.phases import Phase
from mmtrain.data.replacing import MOST_REPLACEMENTS
from mmtrain.data.sample_error import SampleError
from mmtrain.data.samples import Sample, SampleReader
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.stream import Stream, StreamPlace, expand_stream
from mmtrain.errors import UsageError


def open_image_text(config: DataConfig, **common: Any) -> ImageTextData:
    """Images with their captions, by number or as they come.

    Args:
        config: the section [data].
        common: as `NumberedData` takes them.
    """
    return (StreamedData if config.stream else ImageTextData)(config, **common)


class StreamedData(ImageTextData):
    """Batches of what comes next; arguments as `NumberedData`.

    Raises:
        UsageError: fewer shards than processes that read them.
    """

    takes_streams = True

    def __init__(self, config: DataConfig, **common: Any) -> None:
        self._rank, self._world_size = common.get("rank", 0), common.get("world_size", 1)
        self._urls = expand_stream(
            config.only_train,
            key="data.train",
            lets="" if config.allow_pipe else "data.allow_pipe = true",
        )
        processes = self._world_size * max(1, config.workers)
        if processes > len(self._urls):
            raise UsageError(
                f"data.stream = true shares out whole shards, and {len(self._urls)} are fewer than "
                f"{self._world_size} ranks with data.workers = {config.workers}; use fewer"
            )
        self._coming: Generator[dict[str, Any], None, None] | None = None
        self._stream: Stream | None = None
        """Of this process, and its number among all that read."""
        self._process = 0
        self._num_processes, self._is_told = processes, False
        self._places: dict[int, StreamPlace] = {}
        """Where processes of this rank stood behind their last batch that was handed on."""
        super().__init__(config, **common)
        self._is_first = True

    def _open_source(self, settings: SourceSettings) -> SampleSource:
        return _Current(self._urls)

    def _build_reader(
        self, source: SampleSource, settings: SourceSettings, transform: TrainTransform | None
    ) -> SampleReader:
        # Nothing can be looked at before it comes.
        return NumberedData._build_reader(self, source, settings, transform)

    def _plan_of(self, config: DataConfig, **common: Any) -> Any:
        return StreamPlan(
            batch_size=common["batch_size"], rank=self._rank, world_size=self._world_size
        )

    def keep_stored(self, stored: StoredFeatures, *, key: str) -> None:
        """Refused: what is not there could not be told before the run.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{key}: data.stream = true has none; they need shards by ranges")

    def batch(self, number: int) -> ImageTextBatch:
        """What comes next, and where that leaves this process."""
        made = super().batch(number)
        assert self._stream is not None, "it gave the samples"
        return replace(made, stream=(self._process, self._stream.place()))

    def iterate(self, start: int, stop: int) -> Generator[ImageTextBatch, None, None]:
        """The batches of a run from its beginning, or behind what `take_up` was given.

        Raises:
            UsageError: it is to go on at a place that nobody told; or as `NumberedData.iterate`.
        """
        if 0 < start < stop and not self._is_told:
            raise UsageError(
                f"data.stream = true: the checkpoint of step {start} does not say which shards are "
                "behind it; start a new run in another --run-dir, or read the shards by ranges (a "
                "copy, a store, a server that knows them) without data.stream"
            )
        try:
            for batch in super().iterate(start, stop):
                if batch.stream is not None:
                    process, place = batch.stream
                    self._places[process] = place
                yield batch
        finally:
            if self._coming is not None:
                self._coming.close()  # a shard's temporary file goes with it
                self._coming = None

    def stream_state(self) -> dict[str, Any]:
        """Where this rank's processes stand, as plain JSON."""
        places = {str(process): place._asdict() for process, place in self._places.items()}
        return {"processes": self._num_processes, "places": places}

    def take_up(self, state: dict[str, Any] | None) -> Iterator[str]:
        """Go on where the processes of all ranks stood; gives lines about it.

        Args:
            state: as `stream_state`, of all ranks together; None: nobody wrote it.

        Raises:
            UsageError: there are other processes now, which have other shards.
        """
        if state is None:
            return
        if state["processes"] != self._num_processes:
            raise UsageError(
                f"data.stream = true: {state['processes']} processes (ranks x data.workers) shared "
                f"out the shards, and now there are {self._num_processes}; resume with as many"
            )
        places = {int(n): StreamPlace(**place) for n, place in state["places"].items()}
        each = self._num_processes // self._world_size
        own = range(self._rank * each, (self._rank + 1) * each)
        self._places = {process: place for process, place in places.items() if process in own}
        self._is_told = True
        num_done = sum(len(place.done) for place in places.values())
        yield (
            f"data.stream: of the epoch {num_done:,} of {len(self._urls):,} shards are behind; "
            "what was begun of others comes again"
        )

    def _samples(
        self, rows: Rows, phase: Phase
    ) -> tuple[list[Sample | None], tuple[BadSample, ...]]:
        draws = self._row_reader.draws(rows)
        samples: list[Sample | None] = []
        bad: list[BadSample] = []
        (reader,) = self._readers_in(phase)
        for row in range(rows.position_B.size):
            read = partial(reader.read, 0, **draws(row))
            samples.append(self._next(rows, row, bad, read))
        self._check_labels(samples)
        return samples, tuple(bad)

    def _next(
        self, rows: Rows, row: int, bad: list[BadSample], read: Callable[[], Sample]
    ) -> Sample:
        """The next sample that can be used."""
        source = self.source
        assert isinstance(source, _Current)
        refused: list[BadSample] = []
        while len(refused) <= MOST_REPLACEMENTS:
            source.files = self._take()
            try:
                return read()
            except SampleError as error:
                refused.append(self._row_reader.refused(rows, row, 0, error, before=refused))
                bad.append(refused[-1])
        raise self._row_reader.all_bad(rows, row, refused, self._readers[0])

    def _take(self) -> dict[str, Any]:
        """The next sample's files, epoch after epoch."""
        if self._coming is None:
            self._coming = self._epochs()
        return next(self._coming)

    def _epochs(self) -> Generator[dict[str, Any], None, None]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        stream = Stream(
            self._urls,
            map=dict,
            seed=self.seed,
            buffer=self.config.stream_buffer,
            rank=self._rank * workers + number,
            world_size=self._world_size * workers,
            key="data.train",
            retry_seconds=self.config.retry_seconds,
        )
        self._stream, self._process = stream, stream.rank
        if (begun := self._places.get(stream.rank)) is not None:
            stream.go_on(begun)
        may_be_empty = begun is not None
        while True:
            num = 0
            with contextlib.closing(iter(stream)) as rows:
                for files in rows:
                    num += 1
                    yield files
            if not num and not may_be_empty:
                raise UsageError(f"data.train = {self._urls[0]} ...: no samples came")
            may_be_empty = False  # of the epoch that was gone on with nothing may be left

    def _check_labels(self, samples: list[Sample | None]) -> None:
        key, is_first = self.config.label_key, self._is_first
        self._is_first = False
        if key and is_first and all(each is None or each.label == UNIQUE for each in samples):
            raise UsageError(
                f"data.label_key = {key}: none of the first {len(samples)} samples has it; name a "
                "field of their .json"
            )


class StreamPlan:
    """Numbers for what comes: all of one epoch without an end.

    Args:
        batch_size: of each global batch.
        rank: which rows of it are these.
        world_size: how many share it.

    Raises:
        UsageError: the ranks cannot share a batch.
    """

    batches_per_epoch = 0
    """Nobody knows."""

    def __init__(self, *, batch_size: BatchSizes, rank: int, world_size: int) -> None:
        self._sizes = batch_size
        self._parts_rows = [
            rows_of_rank(part, rank=rank, world_size=world_size) for part in batch_size.parts
        ]

    @property
    def batch_size(self) -> int:
        """Rows of the first global batch."""
        return self._sizes.size(0)

    def rows(self, number: int) -> Rows:
        """This rank's rows of a batch."""
        row_B = self._parts_rows[self._sizes.part(number)]
        position_B, zero_B = self._sizes.rows_before(number) + row_B, np.zeros_like(row_B)
        return Rows(
            number=number,
            position_B=position_B,
            sample_B=position_B,
            epoch=0,
            source_B=zero_B,
            source_epoch_B=zero_B,
            place_B=position_B,
        )

    def samples_in(self, number: int) -> int:
        """Every batch is full."""
        return self._sizes.size(number)

    def epochs_done(self, batches: int) -> list[int]:
        """None ever is."""
        return [0]


class _Current:
    """The sample that came last, as a source of one."""

    num_samples = 0
    """Nobody knows."""
    shard_sizes: list[int] = []  # noqa: RUF012

    def __init__(self, urls: tuple[str, ...]) -> None:
        self.files: dict[str, Any] = {}
        self.fingerprint = hashlib.blake2b(repr(urls).encode(), digest_size=16).hexdigest()

    def key(self, sample: int) -> str:
        """Names it."""
        return self.files["__key__"]

    def place(self, sample: int) -> str:
        """The shard that it came from."""
        return self.files["__url__"]

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """Its files."""
        members = {name: each for name, each in self.files.items() if name[:2] != "__"}
        return {n: each for n, each in members.items() if wanted is None or n in wanted}
