"""What the host knows without asking the device."""

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
        return int(self.length_B.max())


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A copy of a small tensor of the host's on a device, for which nobody waits."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
