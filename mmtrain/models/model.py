"""What every model says of itself, so that whoever trains one need not ask which it is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from torch import nn

from mmtrain.models.criterion import Criterion
from mmtrain.models.text import TextTower
from mmtrain.models.vision import VisionTower
from mmtrain.nn import Transformer

Tower = VisionTower | TextTower
"""An encoder with an embedding, a stack of blocks and a head."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack of blocks that a stage holds, or a slice of one."""

    blocks: Transformer
    key: str
    """Where a recipe holds its shape."""
    tokens: int
    """That it takes of an image or a text at most."""


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """How far a model can be cut into stages one after another."""

    most: int
    """Stages, each with a layer of its own."""
    what: str
    """That it is cut, for messages, in a recipe's words."""


class Stage(nn.Module, ABC):
    """A model, or a slice of it, as one module of a schedule.

    The first takes a model's inputs, the last gives its outputs; what is between them is theirs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._criterion: Criterion | None = None

    def set_criterion(self, criterion: Criterion) -> None:
        """What the last stage's `forward` makes of the outputs; the training objective's."""
        self._criterion = criterion

    @abstractmethod
    def stacks(self) -> dict[str, Stack]:
        """All stacks of blocks that are held here, by their path in the stage."""

    @abstractmethod
    def cuts(self) -> Cuts:
        """Of the whole model."""

    @abstractmethod
    def _cut(self, index: int, num_stages: int) -> Self:
        """`slice`, of a number of stages that works."""

    def slice(self, index: int, num_stages: int) -> Self:
        """Stage `index` of a whole model. Its parts, which keep their names, are shared with the
        whole; nothing is copied.

        Raises:
            ValueError: there are more stages than layers.
        """
        cuts = self.cuts()
        if num_stages > cuts.most:
            raise ValueError(f"{num_stages} stages cut {cuts.what}; use at most {cuts.most}")
        return self._cut(index, num_stages)


class Model(nn.Module, ABC):
    """A whole model."""

    @abstractmethod
    def towers(self) -> dict[str, Tower]:
        """Its encoders, by the name under which the model and a recipe's `model.NAME` hold them."""

    @abstractmethod
    def stage(self) -> Stage:
        """What a schedule runs, all in one stage; parameters are shared with this model."""


def tower_stacks(*, vision: VisionTower | None, text: TextTower | None) -> dict[str, Stack]:
    """Those of the towers that a stage holds under these names."""
    found: dict[str, Stack] = {}
    if vision is not None:
        found["vision.transformer"] = Stack(
            blocks=vision.transformer,
            key="model.vision.transformer",
            tokens=vision.config.num_tokens,
        )
    if text is not None:
        found["text.transformer"] = Stack(
            blocks=text.transformer,
            key="model.text.transformer",
            tokens=text.config.context_length,
        )
    return found
