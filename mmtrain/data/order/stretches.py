"""Batches of one size over the epochs: where each begins."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Last = Literal["drop", "mask"]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Batches of one size, from where the order stands at the first of them."""

    first: int
    """The number of the first batch."""
    epoch: int
    """Its epoch."""
    start: int
    """Rows of that epoch that earlier batches took."""
    batch_size: int
    row_B: np.ndarray
    """This rank's rows of a batch."""
    per_lane: int
    """Rows of a batch that each lane gives."""
    in_first: int
    """Batches that the rest of the first epoch gives."""
    per_epoch: int
    """Batches of each epoch behind it."""

    def locate(self, number: int) -> tuple[int, int]:
        """A batch's epoch, and the rows of it that earlier batches took."""
        behind = number - self.first - self.in_first
        if behind < 0:
            return self.epoch, self.start + (number - self.first) * self.batch_size
        epochs, batch = divmod(behind, self.per_epoch)
        return self.epoch + 1 + epochs, batch * self.batch_size

    def taken(self, epoch: int) -> int:
        """Rows of an epoch that its batches end at, as though they went on to its end."""
        if epoch == self.epoch:
            return self.start + self.in_first * self.batch_size
        return self.per_epoch * self.batch_size


def batches_in(num_samples: int, batch_size: int, *, last: Last) -> int:
    """Batches that so many samples give."""
    full, rest = divmod(num_samples, batch_size)
    return full + (last == "mask" and rest > 0)
