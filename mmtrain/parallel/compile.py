"""torch.compile, one block at a time: the blocks are alike, so one compilation serves all."""

import getpass
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from mmtrain.nn.seams import layers_around, wrap_forward
from mmtrain.parallel.blocks import numbered_blocks
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.precision import Precision, multiplies_bf16

CompileSetting = Literal[True, False, "auto"]

PAYS_FROM = 1000
"""Steps of a run. The first one takes a minute longer, and a step of seconds gains a sixth."""


def why_not(layout: Layout, precision: Precision, *, num_steps: int) -> str | None:
    """Why compiling does not pay here; None where it does. By what the machine has, never timed.

    On a CPU with AMX, in bf16, a step of ViT-B/32 and a block of ViT-B/16 are 1.2 times as fast
    (benchmarks/compiled_step.py); in fp32 products leave little to win. On CUDA it is what the
    recipes for GPUs have. Elsewhere nobody has measured.

    Args:
        layout: of the run.
        precision: of the run.
        num_steps: of the whole run.
    """
    device = layout.device.type
    if num_steps < PAYS_FROM:
        return f"it pays from {PAYS_FROM:,} steps on, and the run has {num_steps:,}"
    if layout.size("tp") > 1 and not layout.config.sequence:
        return "torch's compiler does not get through parallel.tp without parallel.sequence"
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if not multiplies_bf16(precision, layout.device):
        return "it pays on CUDA, and in bf16 on a CPU with AMX"
    return None if cpp_compiler() else "there is no C++ compiler (g++)"


def cpp_compiler() -> str | None:
    """What torch.compile compiles with on a CPU."""
    return next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def is_compiled(stages: Sequence[nn.Module]) -> bool:
    """Whether blocks of these stages are."""
    blocks = (block for stage in stages for _, block in numbered_blocks(stage))
    return any("compile" in layers_around(block) for block in blocks)


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
