"""Names for the parts of a step in a trace of torch.profiler; nothing where none is made."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch.profiler import record_function

Region = Literal[
    "step",
    "waiting for data",
    "copy to the device",
    "forward: vision",
    "forward: text",
    "forward: heads",
    "loss",
    "backward",
    "optimizer",
]
"""In the order of a step. A region within another counts for itself alone."""

REGIONS: tuple[Region, ...] = get_args(Region)
PREFIX = "mmtrain: "
"""Of a region's name in a trace."""


def region(name: Region) -> AbstractContextManager[object]:
    """The context whose operations a trace shows under this name."""
    if not torch.autograd._profiler_enabled():  # pyright: ignore[reportPrivateImportUsage]
        return nullcontext()
    return record_function(f"{PREFIX}{name}")
