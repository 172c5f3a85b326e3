"""Memory of batches, which is used again when a batch is let go."""

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MOST_FREE = 2
"""Batches that wait to be used again: the one that is learnt from and the next one take turns."""


class ReusedMemory:
    """Gives out tensors of bytes; safe to pickle and to fork, which share nothing.

    Fresh memory costs a page fault for every 4 KiB: of 64 images of 224 pixels, 2,352 of them, as
    long as copying these images takes ten times.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def empty(self, *shape: int) -> Tensor:
        """A uint8 tensor with anything in it. While it, or what is a view of it, lives, nobody else
        has its memory."""
        size = math.prod(shape)
        fitting = [memory for memory in self._free if memory.size == size]
        memory = fitting[0] if fitting else np.empty(size, dtype=np.uint8)
        # By identity: arrays compare by what is in them.
        self._free = [each for each in self._free if each is not memory]
        lent = memory[:]  # torch holds this object as long as there is a tensor of it
        weakref.finalize(lent, self._give_back, memory).atexit = False
        return torch.from_numpy(lent).view(shape)

    def stacked(self, images: Sequence[Tensor | None], *, size: int) -> Tensor:
        """Images [C, H, W] of one size side by side, channels_last; black where there is none."""
        images_BHWC = self.empty(len(images), size, size, 3)
        for image_HWC, image_CHW in zip(images_BHWC, images, strict=True):
            if image_CHW is None:
                image_HWC.zero_()
            else:
                image_HWC.copy_(image_CHW.permute(1, 2, 0))
        return images_BHWC.permute(0, 3, 1, 2)

    def _give_back(self, memory: np.ndarray) -> None:
        self._free = [*self._free, memory][-_MOST_FREE:]

    def __reduce__(self) -> tuple[type["ReusedMemory"], tuple[()]]:
        return ReusedMemory, ()
