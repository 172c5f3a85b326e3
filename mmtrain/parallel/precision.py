"""Number formats of a run."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16", "bf16-pure", "bf16-fsdp", "fp16", "fp64"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context that a forward pass runs in: 16-bit products over fp32 weights, or none."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, _AUTOCAST[precision])
    return nullcontext()


def apply_precision(stage: nn.Module, precision: Precision, device: torch.device) -> None:
    """Give a stage's weights their stored format and its products theirs, in place.

    `bf16` and `fp16` are autocast: products in that format over fp32 weights; fp16 wants its loss
    scaled (optim/loss_scale.py). `bf16-pure` stores weights and optimizer
    state in bf16 without an fp32 copy: the least memory, and updates below a weight's 8 bits are
    lost. `bf16-fsdp` is FSDP's own (shard.py): what is stored stays fp32. `fp64` is for proofs. The
    logits' scale stays fp32.
    """
    if precision == "bf16-pure":
        stage.to(torch.bfloat16)
    elif precision == "fp64":
        stage.to(torch.float64)
    elif precision in _AUTOCAST:
        _autocast_forward(stage, precision, device)


def _autocast_forward(stage: nn.Module, precision: Precision, device: torch.device) -> None:
    """Run every forward of the stage in an autocast of its own.

    Autocast keeps cast weights until its outermost context ends. One context around several
    microbatches gave FSDP's gathered weights gradients that were off by more than their norm.
    """
    forward: Any = stage.forward

    def run(*inputs: Any, **rows: Any) -> Any:
        with autocast(precision, device):
            return forward(*inputs, **rows)

    stage.forward = run
