"""What the host knows without asking the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


class HostLengths:
    """Lengths of texts that stay with the host, which cuts batches by them: read from the device
    they would make it wait. Opaque, so that whoever moves tensors leaves them where they are.

    Args:
        length_B: int64, tokens of each text.
    """

    def __init__(self, length_B: Tensor) -> None:
        self.length_B = length_B

    def chunk(self, num: int) -> list["HostLengths"]:
        """Those of so many microbatches, as `Tensor.chunk` cuts."""
        return [HostLengths(part) for part in self.length_B.chunk(num)]

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.length_B.tolist())


class Ragged:
    """A tensor of which every row of a batch has another number of entries, such as the pieces of
    its images. Opaque and known to the host, as `HostLengths` is.

    Args:
        x: the entries of all rows, one after another.
        counts: of each row.
    """

    def __init__(self, x: Tensor, counts: Sequence[int]) -> None:
        assert x.size(0) == sum(counts), "every entry is of some row"
        self.x, self.counts = x, tuple(counts)

    def chunk(self, num: int) -> list["Ragged"]:
        """Those of so many microbatches' rows, as `Tensor.chunk` cuts."""
        each = -(-len(self.counts) // num)
        rows = [self.counts[at : at + each] for at in range(0, len(self.counts), each)]
        parts = self.x.split([sum(counts) for counts in rows])
        return [Ragged(x, counts) for x, counts in zip(parts, rows, strict=True)]


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A copy of a small tensor of the host's on a device, for which nobody waits."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
