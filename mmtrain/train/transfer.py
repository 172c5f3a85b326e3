"""Batches go to the device while it computes."""

from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

from mmtrain.data.batch import SampleBatch

Batch = TypeVar("Batch", bound=SampleBatch)


class Transfer:
    """Copies batches to a device, on CUDA on a stream of its own: the host, which is a step ahead,
    has a batch copied while the device computes the step before.

    Args:
        device: where the batches go; those in page-locked memory are not waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device; work that is queued from here on comes behind its copy."""
        if self._stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self._stream):
            moved = batch.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._stream)
        for field in fields(moved):
            value = getattr(moved, field.name)
            if isinstance(value, Tensor) and value.device.type == "cuda":
                value.record_stream(computing)  # its memory is free when that is done with it
        return moved
