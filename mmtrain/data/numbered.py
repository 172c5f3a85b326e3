"""Batches by number, each made on its own and the same whenever it is."""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, NotRequired, TypedDict

import torch
from torch import Tensor

from mmtrain.data.accounts import taken_by
from mmtrain.data.ahead import Ahead
from mmtrain.data.batch import BadSample
from mmtrain.data.config import DataConfig
from mmtrain.data.fingerprint import join_fingerprint, join_sources, split_fingerprint
from mmtrain.data.first_look import one_line_for_disks
from mmtrain.data.images.transforms import PreprocessConfig, TrainTransform
from mmtrain.data.joins.joined import JoinedSource
from mmtrain.data.mixture import SourceSettings
from mmtrain.data.of_shards import open_threads, refuse_without_shards
from mmtrain.data.order.batches import RowPlan, Rows
from mmtrain.data.order.mixture import MixturePlan
from mmtrain.data.phases import Phase, Phases
from mmtrain.data.replacing import RowReader
from mmtrain.data.reused import ReusedMemory
from mmtrain.data.row_plan import build_row_plan, gone_on, run_phases, tell_caches
from mmtrain.data.samples import Sample, SampleReader
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.data.work_sums import WorkSums
from mmtrain.data.workers import BatchT, iterate_batches
from mmtrain.errors import UsageError


class BatchOptions(TypedDict):
    """What all batches are made with; see `NumberedData`."""

    preprocess: PreprocessConfig
    tokenizer: Tokenizer
    seed: int
    batch_size: int
    phases: NotRequired[Sequence[Phase]]
    rank: NotRequired[int]
    world_size: NotRequired[int]
    images: NotRequired[bool]
    fixed_length: NotRequired[int | None]
    pin_memory: NotRequired[bool]


class NumberedData(Generic[BatchT]):
    """The batches of a run by number, counted over all epochs; what is in one, a subclass says.

    Which samples a batch holds, their captions and crops are a function of the seed and the number
    alone: a run may go on anywhere, with other ranks and workers, on the same global order.

    Args:
        config: the recipe's section.
        preprocess: the model's image size and the filter of the resize.
        tokenizer: texts to ids.
        seed: the run's.
        batch_size: rows of a *global* batch.
        phases: the recipe's [[train.phase]].
        rank: this data-parallel coordinate; all tensor- and pipeline-parallel ranks of one make the
            same batches.
        world_size: data-parallel coordinates.
        images: False where another pipeline stage holds the images: `images_BCHW` is then [B, 0].
            They are decoded even so (not resized): every stage must replace the same bad ones.
        fixed_length: pad every text to this many tokens, where shapes must be static.
        pin_memory: put the batches of `iterate` into page-locked memory, for an accelerator.

    Raises:
        UsageError: no usable shards, a batch larger than the data or not divisible by the ranks.
    """

    takes_streams = False
    """Whether what comes in no known order will do."""

    def __init__(
        self,
        config: DataConfig,
        *,
        preprocess: PreprocessConfig,
        tokenizer: Tokenizer,
        seed: int,
        batch_size: int,
        phases: Sequence[Phase] = (),
        rank: int = 0,
        world_size: int = 1,
        images: bool = True,
        fixed_length: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        if fixed_length not in (None, tokenizer.context_length):
            raise UsageError(
                f"fixed_length = {fixed_length} must be tokenizer.context_length = "
                f"{tokenizer.context_length}, which a text may fill"
            )
        if config.stream and not self.takes_streams:
            raise UsageError(
                "data.stream = true gives images with captions to a recipe; for questions use "
                "shards that are read by ranges, and open_stream in a trainer of your own"
            )
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        self._images, self._preprocess = images, preprocess
        self._fixed_length, self._pin_memory = fixed_length, pin_memory
        self.work = WorkSums()
        """What the batches took that `iterate` gave."""
        self._memory = ReusedMemory()
        self._cache = config.open_cache(world_size=world_size)
        self._ahead = None if self._cache is None else Ahead(self._cache)
        self._last: int | None = None
        """Number of the last batch of `iterate`."""
        self.sources = [self._open_source(settings) for settings in config.sources]
        refuse_without_shards(config, self.sources)
        self._row_reader = RowReader(
            sources=self.sources,
            settings=config.sources,
            threads=open_threads(config, self.sources),
            seed=seed,
        )
        self.phases = self.lay_out(phases, batch_size=batch_size)
        """Of the run."""
        self._build_plan = partial(
            self._plan_of,
            shard_sizes=[source.shard_sizes for source in self.sources],
            seed=seed,
            batch_size=self.phases.sizes,
            rank=rank,
            world_size=world_size,
        )
        self.plan = self._build_plan(config)
        self._readers = [
            self._build_reader(source, settings, self._transform(preprocess))
            for source, settings in zip(self.sources, config.sources, strict=True)
        ]

    def lay_out(self, phases: Sequence[Phase], *, batch_size: int) -> Phases:
        """Where phases of a run on these data begin and end; see `run_phases`."""
        standard = Phase(
            steps=1,
            batch_size=batch_size,
            image_size=self._preprocess.image_size,
            context_length=self.tokenizer.context_length,
        )
        return run_phases(self.config, phases, standard=standard, num_samples=self.num_samples)

    def _plan_of(self, config: DataConfig, **common: Any) -> RowPlan:
        return build_row_plan(config, **common)

    def _open_source(self, settings: SourceSettings) -> SampleSource:
        config = self.config
        source = open_source(
            settings.train,
            image_key=settings.image_key,
            key=f"{settings.key}.train",
            is_mixed=bool(config.mixture or config.joins),
            **config.opening(self._cache),
        )
        if not config.joins:
            return source
        return JoinedSource(
            source,
            config.joins,
            key_column=config.join_key,
            missing=config.join_missing,
            takes_lists=settings.caption_lines is not False,
            index_dir=config.index_dir,
            cache=self._cache,
        )

    def _build_reader(
        self, source: SampleSource, settings: SourceSettings, transform: TrainTransform | None
    ) -> SampleReader:
        config = self.config
        return SampleReader(
            source,
            transform=transform,
            captions=settings.captions,
            caption_lines=settings.caption_lines,
            label_key=settings.label_key,
            max_pixels=config.max_image_pixels,
            at_least=config.decoded_at_least(self._preprocess.image_size),
            retry_seconds=config.retry_seconds,
        )

    def _transform(self, preprocess: PreprocessConfig) -> TrainTransform | None:
        return TrainTransform(preprocess, self.config.augment) if self._images else None

    def _readers_in(self, phase: Phase) -> list[SampleReader]:
        """One of each source, for images of the phase's size."""
        size = phase.image_size
        if size in (None, self._preprocess.image_size):
            return self._readers
        transform = self._transform(replace(self._preprocess, image_size=size))
        at_least = self.config.decoded_at_least(size)
        return [reader.at_size(transform, at_least=at_least) for reader in self._readers]

    @property
    def source(self) -> SampleSource:
        """The only one, of data without a mixture."""
        (source,) = self.sources
        return source

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(source.num_samples for source in self.sources)

    def told(self) -> Iterator[str]:
        """Lines for whoever starts a run on them; here none."""
        return iter(())

    @property
    def batches_per_epoch(self) -> int:
        """Global batches, and so steps, of an epoch; of a mixture see `MixturePlan`."""
        return self.plan.batches_per_epoch

    def samples_in(self, number: int) -> int:
        """Real samples of a global batch; the last one of an epoch may be padded."""
        return self.plan.samples_in(number)

    def check_length(self, steps: int, *, key: str) -> None:
        """Refuse a run that is longer than its data, or that never meets some of them.

        Args:
            steps: of the whole run.
            key: the setting that says so, with its value.

        Raises:
            UsageError: naming the source.
        """
        if isinstance(self.plan, MixturePlan):
            self.plan.check_length(steps, key=key)

    def go_on(self, before: DataConfig, *, step: int) -> DataConfig:
        """Be what another recipe was up to a step, and go on from there by one's own.

        Args:
            before: the section of the steps behind, with sources of the same names.
            step: updates done.

        Returns:
            One's own section, with the weights of the steps behind in it.

        Raises:
            UsageError: the steps behind would not be those of `before`.
        """
        self.config, self.plan = gone_on(
            before, self.config, step=step, build_plan=self._build_plan
        )
        return self.config

    def source_figures(self, steps: int) -> dict[str, dict[str, float]]:
        """Samples of each source, and its epochs, in the first steps; empty without a mixture."""
        if not isinstance(self.plan, MixturePlan):
            return {}
        sources, counts = self.plan.sources, self.plan.counts(steps).tolist()
        samples = {one.name: num for one, num in zip(sources, counts, strict=True)}
        epochs = {one.name: samples[one.name] / one.plan.num_samples for one in sources}
        return {"source_samples": samples, "source_epochs": epochs}

    @property
    def fingerprint(self) -> str:
        """Changes when the shards' content does, or how they are mixed; not with their folder."""
        names = [settings.name for settings in self.config.sources]
        prints = [source.fingerprint for source in self.sources]
        layout, content = (
            join_sources(names, prints) if names != [""] else split_fingerprint(*prints)
        )
        text = f"{layout} {self.config.shuffle_group}"
        if (lanes := self.config.lanes) > 1:
            text += f" {lanes} lanes"
        mixed = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return join_fingerprint(mixed, content)

    def batch(self, number: int) -> BatchT:
        """This rank's rows of a global batch: a pure function of the number.

        Raises:
            UsageError: a shard cannot be read, or many replacements of a sample are bad.
        """
        raise NotImplementedError

    def iterate(self, start: int, stop: int) -> Generator[BatchT, None, None]:
        """The batches from `start` up to `stop`, in order, made ahead by workers if there are any.

        Closing the iterator (or leaving it to be collected) ends the workers.

        Raises:
            UsageError: as `batch`, here too where a worker met it; or a worker was killed.
        """
        self._last = stop - 1
        try:
            yield from iterate_batches(
                self,
                start,
                stop,
                workers=self.config.workers,
                prefetch=self.config.prefetch,
                pin_memory=self._pin_memory,
                told=lambda work, num_ready: self.work.add(work, num_ready=num_ready),
            )
        finally:
            self._last = None
            if self._ahead is not None:
                self._ahead.stop()

    def _samples(
        self, rows: Rows, phase: Phase
    ) -> tuple[list[Sample | None], tuple[BadSample, ...]]:
        """The rows' samples, None on padding, and the bad ones that others replaced."""
        tell_caches(self.sources, self.plan, rows)
        if self._ahead is not None and self._last is not None:
            self._ahead.want(rows, self._readers, self.plan, last=self._last)
        with one_line_for_disks("data.mixture" if self.config.mixture else "data.train"):
            return self._row_reader.read(rows, plan=self.plan, readers=self._readers_in(phase))

    def _account(
        self,
        number: int,
        rows: Rows,
        samples: Sequence[Sample | None],
        bad: tuple[BadSample, ...],
    ) -> dict[str, Any]:
        """What every kind of batch says of its rows."""
        return {
            "position_B": torch.from_numpy(rows.position_B),
            "valid_B": torch.tensor([sample is not None for sample in samples]),
            "epoch": rows.epoch,
            "phase": self.phases.number(number),
            "keys": tuple("" if sample is None else sample.key for sample in samples),
            "bad": bad,
            "taken": taken_by(rows, bad),
            "source_B": torch.from_numpy(rows.source_B) if self.config.mixture else None,
        }

    def _stacked(self, samples: list[Sample | None], phase: Phase) -> Tensor:
        if not self._images:
            return torch.empty(len(samples), 0, dtype=torch.uint8)
        size = phase.image_size or self._preprocess.image_size
        pixels = [None if sample is None else sample.pixels_CHW for sample in samples]
        return self._memory.stacked(pixels, size=size)
