"""Which part of what its devices could do at most a run makes use of (MFU).

Model FLOPs: three times the forward of what a batch holds, as PaLM counts them (arXiv:2204.02311,
appendix B); recomputed blocks and second passes are work of the hardware, not of the model.
"""

from collections.abc import Callable
from typing import Any

import torch

from mmtrain.parallel.accelerators import find_accelerator, peak_tflops


def peak_flops(
    device: torch.device, *, precision: str, peak_tflops_given: float | None
) -> float | None:
    """FLOPs a second of one device at most: what the recipe says, or what its name stands for.
    None: nobody knows, as of a CPU."""
    if peak_tflops_given is not None:
        return 1e12 * peak_tflops_given
    if device.type != "cuda":
        return None
    known = find_accelerator(torch.cuda.get_device_name(device))
    peak = None if known is None else peak_tflops(known, precision)
    return None if peak is None else 1e12 * peak


class Utilisation:
    """The MFU of a run's steps.

    Args:
        flops: of a training step on one row of a batch like this one.
        peak: FLOPs a second of all devices at most.
    """

    def __init__(self, flops: Callable[[Any], int], *, peak: float) -> None:
        self._flops, self._peak = flops, peak
        self._of_row = 0

    def see(self, batch: Any) -> None:
        """Note what the newest batch is like: texts are cut to its longest."""
        self._of_row = self._flops(batch)

    def figures(self, samples_per_second: float) -> dict[str, float]:
        """`mfu`, a share of 1."""
        return {"mfu": self._of_row * samples_per_second / self._peak}
