"""The recipe's [[data.mixture]]: several sources by weight."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from mmtrain.data.order.stream import Weights
from mmtrain.limits import MOST_STEPS, check_counts
from mmtrain.settings.paths import PathText

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """Another weight from a step on."""

    from_step: int
    """Holds as soon as so many steps are done, as a checkpoint's number counts them."""
    weight: float
    """As the source's; 0 leaves the source out from here on."""

    def __post_init__(self) -> None:
        if self.from_step < 1:
            raise ValueError(
                f"from_step = {self.from_step} must be at least 1; before that, weight holds"
            )
        check_counts(self, "from_step", most=MOST_STEPS)
        _check_weight("weight", self.weight)


@dataclass(frozen=True, kw_only=True)
class MixtureSource:
    """One of the sets that are mixed."""

    name: str
    """Names it in metrics.jsonl, in messages and in its random order; letters, digits, _ . and -"""
    train: PathText | tuple[PathText, ...]
    """As data.train."""
    weight: float
    """Its samples among those of all; the weights need not sum to 1. 0: none until a change."""
    weight_changes: tuple[WeightChange, ...] = ()
    """Other weights from later steps on: `[{ from_step = 1000, weight = 0.2 }]`."""
    max_epochs: int | None = None
    """How often each of its samples is seen at most; data.mixture_end says what then. None: once,
    or without end where mixture_end is `repeat`."""
    image_key: str | None = None
    """As data.image_key. None: that."""
    captions: dict[str, float] | None = None
    """As data.captions. None: these."""
    caption_lines: bool | None = None
    """As data.caption_lines. None: that."""
    label_key: str | None = None
    """As data.label_key. None: that; "": its samples have no labels."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f'name = "{self.name}" must be of letters, digits, _ . and -, such as "photos"'
            )
        _check_weight("weight", self.weight)
        check_counts(self, "max_epochs", most=MOST_STEPS)
        if self.captions is not None:
            check_captions(self.captions)
        steps = [change.from_step for change in self.weight_changes]
        if any(later <= step for step, later in itertools.pairwise(steps)):
            raise ValueError(
                f"weight_changes: from_step = {', '.join(map(str, steps))} must rise from one to "
                "the next"
            )
        if not self.weight and not any(change.weight for change in self.weight_changes):
            raise ValueError(
                f"weight = {self.weight:g} must be above 0, or a change of weight_changes must be; "
                "leave the source out for none of it"
            )

    def with_defaults(self, settings: Mapping[str, Any]) -> "SourceSettings":
        """What holds for it, from its own settings and those of [data]."""
        own = {
            name: value if getattr(self, name) is None else getattr(self, name)
            for name, value in settings.items()
        }
        return SourceSettings(
            name=self.name,
            key=f"data.mixture[{self.name}]",
            train=self.train,
            image_key=own["image_key"],
            captions=own["captions"],
            caption_lines=own["caption_lines"],
            label_key=own["label_key"] or None,
        )

    def weight_at(self, step: int) -> float:
        """Its weight in a step."""
        past = [change.weight for change in self.weight_changes if change.from_step <= step]
        return past[-1] if past else self.weight


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One set and how it is read; the names are those of the section [data]."""

    name: str
    """In a mixture; else empty."""
    key: str
    """What its settings are called by, for messages."""
    train: PathText | tuple[PathText, ...]
    image_key: str
    captions: dict[str, float]
    caption_lines: bool | None
    label_key: str | None


def check_captions(captions: dict[str, float]) -> None:
    """Refuse places of captions that cannot be drawn from.

    Raises:
        ValueError: there is none, or a weight is not above 0.
    """
    if not captions:
        raise ValueError("captions = {} names no place; use { txt = 1.0 } for the .txt member")
    for name, weight in captions.items():
        if not (name and 0 < weight < math.inf):
            raise ValueError(f"captions.{name} = {weight} must be above 0; leave out the others")


def check_mixture(sources: Sequence[MixtureSource], *, repeats: bool) -> None:
    """Refuse what contradicts itself.

    Raises:
        ValueError: naming it.
    """
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1:
            raise ValueError(f'mixture has the name "{source.name}" twice')
        if repeats and source.max_epochs is not None:
            raise ValueError(
                f"mixture.max_epochs = {source.max_epochs} of {source.name} contradicts "
                'mixture_end = "repeat", where every source starts anew; use "stop" or '
                '"drop_source", or leave it out'
            )
    for step, weights in weight_schedule(sources):
        if not any(weights):
            raise ValueError(f"mixture has no source with a weight above 0 from step {step} on")


def weight_schedule(sources: Sequence[MixtureSource]) -> list[tuple[int, Weights]]:
    """The weights of all sources from each step on in which one of them changes, from 0.

    They are the fractions that were written: 0.1 is a tenth.
    """
    steps = {0, *(change.from_step for source in sources for change in source.weight_changes)}
    schedule: list[tuple[int, Weights]] = []
    for step in sorted(steps):
        weights = tuple(Fraction(str(source.weight_at(step))) for source in sources)
        if not schedule or weights != schedule[-1][1]:
            schedule.append((step, weights))
    return schedule


def changed_at(before: MixtureSource, now: MixtureSource, step: int) -> MixtureSource:
    """A source whose weights are the former ones in the steps behind, and from a step on those of
    the recipe as it is now."""
    if step == 0:
        return now
    steps = {step, *(change.from_step for change in now.weight_changes if change.from_step > step)}
    kept = [change for change in before.weight_changes if change.from_step < step]
    weight = before.weight_at(step - 1)
    for each in sorted(steps):
        if now.weight_at(each) != weight:
            weight = now.weight_at(each)
            kept.append(WeightChange(from_step=each, weight=weight))
    return replace(now, weight=before.weight, weight_changes=tuple(kept))


def _check_weight(name: str, weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name} = {weight:g} must be 0 or above")
