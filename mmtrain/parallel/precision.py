"""Number formats of a run."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16", "bf16-pure", "fp64"]


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context that forward passes run in: bf16 products over fp32 weights, or none."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def apply_precision(towers: nn.Module, precision: Precision) -> None:
    """Give the towers' weights their stored format, in place.

    `bf16-pure` stores weights and optimizer state in bf16 without an fp32 copy: the least memory, and
    updates below a weight's 8 bits are lost. `fp64` is for proofs. The logits' scale stays fp32.
    """
    if precision == "bf16-pure":
        towers.to(torch.bfloat16)
    elif precision == "fp64":
        towers.to(torch.float64)
