"""torch.compile, one block at a time: the blocks are alike, so one compilation serves all."""

import torch
from torch import nn

from mmtrain.parallel.blocks import numbered_blocks


def apply_compile(stage: nn.Module) -> None:
    """Compile every block of a stage, in place; parameters keep their names.

    The forward alone, so that what is put around it later (recompute, FSDP's hooks) stays outside
    of the compiled code.
    """
    for _, block in numbered_blocks(stage):
        block.forward = torch.compile(block.forward)
