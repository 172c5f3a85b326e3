"""torch.compile, one block at a time: the blocks are alike, so one compilation serves all."""

import getpass
import os
import tempfile
from pathlib import Path

import torch
from torch import nn

from mmtrain.nn.seams import wrap_forward
from mmtrain.parallel.blocks import numbered_blocks


def compiled_code() -> Path:
    """Where torch keeps what it has compiled, for other ranks and for the next run."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(named or Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}")


def apply_compile(stage: nn.Module) -> None:
    """Compile every block of a stage, in place; parameters keep their names.

    The forward alone: full recompute and FSDP's hooks stay outside of the compiled code.
    """
    for _, block in numbered_blocks(stage):
        wrap_forward(block, "compile", torch.compile)
