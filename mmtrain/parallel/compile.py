"""torch.compile, one block at a time: the blocks are alike, so one compilation serves all."""

from mmtrain.models import ClipStage


def apply_compile(stage: ClipStage) -> None:
    """Compile every block of a stage, in place; parameters keep their names."""
    for tower in (stage.vision, stage.text):
        for block in tower.transformer.blocks.values():
            block.compile()
