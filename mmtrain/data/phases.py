"""The recipe's [[train.phase]]: stretches of a run, each with a batch of its own kind.

FLIP leaves patches out (arXiv:2212.00794), CLIPA begins with small images and short texts
(arXiv:2305.07017); both end with a short phase of whole ones.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mmtrain.data.order.batch_sizes import BatchSizes, SizedBatches
from mmtrain.errors import UsageError
from mmtrain.limits import MOST_PIXELS, MOST_STEPS, check_counts

LENGTHS = ("steps", "samples", "epochs")
_SIZE = "train.batch_size"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of a run; what it does not say is as elsewhere in the recipe."""

    steps: int | None = None
    """Its updates. One of steps, samples and epochs."""
    samples: int | None = None
    """Rows of its batches: as many updates as fill them."""
    epochs: float | None = None
    """Passes over the data: of each, the updates that an epoch has at its batch size."""
    batch_size: int | None = None
    """As train.batch_size. None: that."""
    microbatches: int | None = None
    """As train.microbatches. None: that."""
    lr_factor: float = 1.0
    """What the learning rate of optim.schedule is multiplied by."""
    patch_dropout: float | None = None
    """As model.vision.patch_dropout. None: that."""
    image_size: int | None = None
    """Side of the images, pixels; at most model.vision.image_size, whose positions are
    interpolated. None: that."""
    context_length: int | None = None
    """Tokens of a text at most; at most tokenizer.context_length. None: that."""

    def __post_init__(self) -> None:
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) != 1:
            told = " and ".join(given) or "none of them"
            raise ValueError(f"set exactly one of steps, samples and epochs, not {told}")
        check_counts(self, "steps", "samples", most=MOST_STEPS)
        check_counts(self, "batch_size", "microbatches", most=MOST_STEPS)
        check_counts(self, "image_size", most=MOST_PIXELS)
        check_counts(self, "context_length", least=3)
        if self.epochs is not None and not 0 < self.epochs <= MOST_STEPS:
            raise ValueError(f"epochs = {self.epochs:g} must be above 0 and at most {MOST_STEPS}")
        if not 0 < self.lr_factor < math.inf:
            raise ValueError(f"lr_factor = {self.lr_factor:g} must be above 0")
        if self.patch_dropout is not None and not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout = {self.patch_dropout:g} must lie in [0, 1)")

    @property
    def length(self) -> str:
        """How long it is, as the user wrote it."""
        name = next(name for name in LENGTHS if getattr(self, name) is not None)
        return f"{name} = {getattr(self, name):g}"

    def num_steps(self, *, batch_size: int, per_epoch: int) -> int:
        """Its updates.

        Args:
            batch_size: rows of its batches.
            per_epoch: batches of an epoch.
        """
        if self.steps is not None:
            return self.steps
        if self.samples is not None:
            return self.samples // batch_size
        assert self.epochs is not None
        return round(self.epochs * per_epoch)


@dataclass(frozen=True, kw_only=True)
class Phases:
    """The phases of a run, laid out over its steps; a run without any is one without end."""

    phases: tuple[Phase, ...]
    """Each with what it leaves to the recipe filled in."""
    firsts: tuple[int, ...]
    """The step that each begins behind."""
    size_keys: tuple[str, ...]
    """The setting that each has its batch size from."""
    total_steps: int | None
    """Updates of all; None: there are no phases, and others say."""

    @property
    def are_given(self) -> bool:
        """Whether the recipe has any."""
        return self.total_steps is not None

    @cached_property
    def sizes(self) -> BatchSizes:
        """Rows of every batch."""
        return BatchSizes(
            [
                SizedBatches(first=first, batch_size=_known(phase.batch_size), key=key)
                for first, phase, key in zip(self.firsts, self.phases, self.size_keys, strict=True)
            ]
        )

    def facts(self) -> dict[str, dict[str, Any]]:
        """By number what each phase says, and the step that it begins behind."""
        return {
            str(number): {"first_step": first}
            | {name: value for name, value in vars(phase).items() if value is not None}
            for number, (first, phase) in enumerate(zip(self.firsts, self.phases, strict=True))
        }

    def lines(self) -> Iterator[str]:
        """A line for each phase."""
        assert self.total_steps is not None
        ends = (*self.firsts[1:], self.total_steps)
        for number, (phase, first, end) in enumerate(
            zip(self.phases, self.firsts, ends, strict=True)
        ):
            said = {k: v for k, v in vars(phase).items() if v is not None and k not in LENGTHS}
            told = ", ".join(f"{name} {value:g}" for name, value in said.items())
            yield f"phase {number}: steps {first + 1:,} to {end:,}, {told}"

    def number(self, step: int) -> int:
        """Which phase the step behind so many others is of, from 0."""
        return self.sizes.part(step)

    def at(self, step: int) -> Phase:
        """That phase."""
        return self.phases[self.number(step)]

    def clock(self, step: int) -> int:
        """Rows of the batches before a step, in units of the largest number that divides all batch
        sizes: with one size, the step itself."""
        return self.sizes.rows_before(step) // self.sizes.unit


def lay_out_phases(
    phases: Sequence[Phase], *, standard: Phase, per_epoch: Callable[[int], int]
) -> Phases:
    """Where each phase begins and ends.

    Args:
        phases: of the recipe; none of them where it has none.
        standard: what a phase is that says nothing; its length does not matter.
        per_epoch: batches of an epoch, by the size of a batch.

    Raises:
        UsageError: a phase has no step.
    """
    if not phases:
        return Phases(phases=(standard,), firsts=(0,), size_keys=(_SIZE,), total_steps=None)
    filled, firsts, step = [], [], 0
    for number, phase in enumerate(phases):
        whole = _filled(phase, standard)
        size = _known(whole.batch_size)
        key = f"train.phase[{number}]: {phase.length}"
        num_steps = phase.num_steps(
            batch_size=size, per_epoch=0 if phase.epochs is None else per_epoch(size)
        )
        if num_steps < 1:
            raise UsageError(
                f"{key} is no whole step of batch_size = {size}; make it longer, or leave it out"
            )
        filled.append(whole)
        firsts.append(step)
        step += num_steps
    keys = [
        _SIZE if p.batch_size is None else f"train.phase[{i}]: batch_size"
        for i, p in enumerate(phases)
    ]
    return Phases(
        phases=tuple(filled), firsts=tuple(firsts), size_keys=tuple(keys), total_steps=step
    )


def _filled(phase: Phase, standard: Phase) -> Phase:
    """A phase with what it leaves open as elsewhere in the recipe."""
    own = {name: value for name, value in vars(standard).items() if name not in LENGTHS}
    return replace(phase, **{k: v for k, v in own.items() if getattr(phase, k) is None})


def _known(value: int | None) -> int:
    assert value is not None, "phases are laid out filled in"
    return value
