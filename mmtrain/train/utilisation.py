"""Which part of what its devices could do at most a run makes use of (MFU, HFU).

Model FLOPs: three times the forward of what a batch holds, as PaLM counts them (arXiv:2204.02311,
appendix B), less the gradients that nothing asks for. Recomputed blocks and second passes are work
of the hardware, not of the model: they are in the HFU, which is there where it is another number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

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


def training_work(tower: nn.Module, blocks: nn.ModuleDict) -> float:
    """What a step computes of a tower, in forwards: 3 where all of it trains, 1 where nothing does.

    Gradients of activations are wanted of blocks in which something trains, those of weights by the
    weights that train: under a lock both from above, beside an adapter the former of all blocks.

    Args:
        tower: with `requires_grad` as it trains.
        blocks: its blocks.
    """
    trains = [any(p.requires_grad for p in block.parameters()) for block in blocks.values()]
    sizes = [(p.numel(), p.requires_grad) for p in tower.parameters()]
    weights = sum(size for size, wanted in sizes if wanted) / sum(size for size, _ in sizes)
    return 1 + sum(trains) / len(trains) + weights


@dataclass(frozen=True, kw_only=True)
class RowFlops:
    """Of a step on one row of a batch."""

    model: float
    """What the model needs."""
    hardware: float
    """What is computed."""


class Utilisation:
    """The MFU and HFU of a run's steps.

    Args:
        flops: of a batch like this one.
        peak: FLOPs a second of all devices at most.
    """

    def __init__(self, flops: Callable[[Any], RowFlops], *, peak: float) -> None:
        self._flops, self._peak = flops, peak
        self._of_row = RowFlops(model=0, hardware=0)

    def see(self, batch: Any) -> None:
        """Note what the newest batch is like: texts are cut to its longest."""
        self._of_row = self._flops(batch)

    def figures(self, samples_per_second: float) -> dict[str, float]:
        """`mfu`, a share of 1, and `hfu` where more is computed than the model needs."""
        rows = samples_per_second / self._peak
        found = {"mfu": self._of_row.model * rows}
        if self._of_row.hardware > self._of_row.model:
            found["hfu"] = self._of_row.hardware * rows
        return found
