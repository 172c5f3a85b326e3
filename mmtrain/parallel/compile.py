"""torch.compile, one block at a time: the blocks are alike, so one compilation serves all."""

from torch import nn

from mmtrain.parallel.blocks import numbered_blocks


def apply_compile(stage: nn.Module) -> None:
    """Compile every block of a stage, in place; parameters keep their names."""
    for _, block in numbered_blocks(stage):
        block.compile()
