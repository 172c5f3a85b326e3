"""What every model says of itself, so that whoever trains one need not ask which it is."""

from abc import ABC, abstractmethod

from torch import nn

from mmtrain.models.text import TextTower
from mmtrain.models.vision import VisionTower

Tower = VisionTower | TextTower
"""An encoder with an embedding, a stack of blocks and a head."""


class Model(nn.Module, ABC):
    """A whole model."""

    @abstractmethod
    def towers(self) -> dict[str, Tower]:
        """Its encoders, by the name under which the model and a recipe's `model.NAME` hold them."""
