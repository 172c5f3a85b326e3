"""What every model gives parallelism to work on: its transformers' blocks."""

from collections.abc import Iterator

from torch import nn

from mmtrain.nn import Transformer, TransformerBlock


def transformers(stage: nn.Module) -> Iterator[Transformer]:
    """Every stack of blocks of a stage, whatever the model."""
    return (module for module in stage.modules() if isinstance(module, Transformer))


def numbered_blocks(stage: nn.Module) -> Iterator[tuple[int, TransformerBlock]]:
    """The blocks that a stage holds, with their number in the whole stack."""
    for transformer in transformers(stage):
        for name, block in transformer.blocks.items():
            assert isinstance(block, TransformerBlock)
            yield int(name), block
