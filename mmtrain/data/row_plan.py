"""The plan of a run's batches, from the section [data]."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from mmtrain.data.config import DataConfig
from mmtrain.data.joins.joined import JoinedSource
from mmtrain.data.mixture import changed_at, weight_schedule
from mmtrain.data.order.batch_sizes import BatchSizes
from mmtrain.data.order.batches import BatchPlan, RowPlan, Rows
from mmtrain.data.order.mixture import Mixed, MixturePlan
from mmtrain.data.order.plan import PADDING, EpochPlan
from mmtrain.data.order.stretches import batches_in
from mmtrain.data.phases import Phase, Phases, lay_out_phases
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError

_MOST = {
    "image_size": "model.vision.image_size",
    "context_length": "tokenizer.context_length",
}


def tell_caches(sources: Sequence[SampleSource], plan: RowPlan, rows: Rows) -> None:
    """Tell the cache of each source in a batch which of its shards are wanted next."""
    for number, source in shards_in(sources, rows):
        row = int(np.argmax((rows.source_B == number) & (rows.place_B != PADDING)))
        source.expect(partial(plan.coming, rows, row))


def shards_in(sources: Sequence[SampleSource], rows: Rows) -> Iterator[tuple[int, ShardSource]]:
    """The sources of a batch that are shards."""
    for number in np.unique(rows.source_B[rows.place_B != PADDING]).tolist():
        if (source := shards_of(sources[number])) is not None:
            yield number, source


def shards_of(source: SampleSource) -> ShardSource | None:
    """The shards of a source; None: it has none."""
    inner = source.inner if isinstance(source, JoinedSource) else source
    return inner if isinstance(inner, ShardSource) else None


def run_phases(
    config: DataConfig, phases: Sequence[Phase], *, standard: Phase, num_samples: int
) -> Phases:
    """Where the phases of a run begin and end.

    Args:
        config: the section [data].
        phases: of the recipe; none of them where it has none.
        standard: what a phase is that says nothing.
        num_samples: of all sources.

    Raises:
        UsageError: a phase has no step, images or texts beyond the model's, or the length of epochs
            that these data do not have.
    """
    for number, phase in enumerate(phases):
        for name, key in _MOST.items():
            value, most = getattr(phase, name), getattr(standard, name)
            if None not in (value, most) and value > most:
                raise UsageError(
                    f"train.phase[{number}]: {name} = {value} is above {key} = {most}, whose "
                    f"positions all phases share; raise {key}, or lower it"
                )
        if phase.epochs is not None and (config.mixture or config.stream):
            why = (
                "a mixture has no epochs of its own"
                if config.mixture
                else "with data.stream = true nobody knows how many samples an epoch has"
            )
            raise UsageError(f"train.phase[{number}]: {phase.length}: {why}; use samples or steps")
    return lay_out_phases(
        phases,
        standard=standard,
        per_epoch=lambda size: batches_in(num_samples, size, last=config.last),
    )


def gone_on(
    before: DataConfig,
    now: DataConfig,
    *,
    step: int,
    build_plan: Callable[[DataConfig], RowPlan],
) -> tuple[DataConfig, RowPlan]:
    """The mixture of a recipe with the weights that another had in the steps behind, and its plan.

    Args:
        before: the section of the steps behind, with sources of the same names.
        now: this one.
        step: updates done.
        build_plan: of either.

    Raises:
        UsageError: the steps behind would not be those of `before`.
    """
    sources = zip(before.mixture, now.mixture, strict=True)
    config = replace(now, mixture=tuple(changed_at(old, new, step) for old, new in sources))
    then, plan = build_plan(before), build_plan(config)
    assert isinstance(then, MixturePlan) and isinstance(plan, MixturePlan)
    differ = then.counts(step) != plan.counts(step)
    if differ.any():
        name = config.mixture[int(differ.argmax())].name
        raise UsageError(
            f"data.mixture[{name}]: its max_epochs and data.mixture_end, as they are now, "
            f"would have made other steps before step {step}; go on with what was saved "
            "(without a recipe --resume takes the run's own), or start a new run in another "
            "--run-dir"
        )
    return config, plan


def build_row_plan(
    config: DataConfig,
    *,
    shard_sizes: Sequence[Sequence[int]],
    seed: int,
    batch_size: int | BatchSizes,
    rank: int,
    world_size: int,
) -> RowPlan:
    """Which samples each batch holds.

    Args:
        config: the section [data].
        shard_sizes: of each source.
        seed: the run's.
        batch_size: rows of a *global* batch, or of each of them.
        rank: this data-parallel coordinate.
        world_size: data-parallel coordinates.

    Raises:
        UsageError: a batch larger than the data or one not divisible by the ranks or the lanes.
    """
    orders = [
        EpochPlan(
            sizes,
            seed=seed,
            shuffle_group=config.shuffle_group,
            lanes=config.lanes,
            name=settings.name,
        )
        for sizes, settings in zip(shard_sizes, config.sources, strict=True)
    ]
    if not config.mixture:
        return BatchPlan(
            orders[0], batch_size=batch_size, last=config.last, rank=rank, world_size=world_size
        )
    once = None if config.mixture_end == "repeat" else 1
    return MixturePlan(
        [
            Mixed(name=one.name, plan=order, max_epochs=one.max_epochs or once)
            for one, order in zip(config.mixture, orders, strict=True)
        ],
        weight_schedule(config.mixture),
        end=config.mixture_end,
        batches=config.mixture_batches,
        batch_size=batch_size,
        last=config.last,
        rank=rank,
        world_size=world_size,
    )
