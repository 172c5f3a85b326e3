"""Which part of what its devices could do at most a run makes use of (MFU, HFU).

Model FLOPs: three times the forward of what a batch holds, as PaLM counts them (arXiv:2204.02311,
appendix B), less the gradients that nothing asks for. Recomputed blocks, second passes and what a
teacher makes are work of the hardware, not of the model: they are in the HFU, which is there where
it is another number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmtrain.models.parameters import HasTables
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


def wanted_blocks(blocks: nn.ModuleDict, *, embed: nn.Module | None) -> list[bool]:
    """Whether the gradient of each block's activations is: from the first one up in which something
    trains, of all where something before them does.

    Args:
        blocks: with `requires_grad` as they train.
        embed: what comes before them.
    """
    parts = [*([] if embed is None else [embed]), *blocks.values()]
    trains = [any(p.requires_grad for p in part.parameters()) for part in parts]
    return [any(trains[: i + 1]) for i in range(len(trains))][len(parts) - len(blocks) :]


def training_work(tower: nn.Module, blocks: nn.ModuleDict, *, embed: nn.Module | None) -> float:
    """What a step computes of a tower, in forwards: 3 where all of it trains, 1 where nothing does.

    Beside the forward there are the gradients of activations, see `wanted_blocks`, and those of the
    weights that train, of which tables are in no product.

    Args:
        tower: with `requires_grad` as it trains.
        blocks: its blocks; a trunk of others' has none, and trains as a whole or not at all.
        embed: what comes before them.
    """
    if not any(p.requires_grad for p in tower.parameters()):
        return 1.0
    wanted = wanted_blocks(blocks, embed=embed) or [True]
    sizes = [(p.numel(), p.requires_grad) for p in _multiplied(tower)]
    weights = sum(size for size, trains in sizes if trains) / sum(size for size, _ in sizes)
    return 1 + sum(wanted) / len(wanted) + weights


def _multiplied(tower: nn.Module) -> Iterator[nn.Parameter]:
    """Weights that something is multiplied by."""
    for module in tower.modules():
        if isinstance(module, nn.Embedding):
            continue
        tables = module.no_decay if isinstance(module, HasTables) else ()
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim > 1 and name not in tables:
                yield weight


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
