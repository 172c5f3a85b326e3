"""How a trunk is built: without memory where we build so, its statistics as weights that rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def fixed_statistics(module: _Module) -> _Module:
    """Make the statistics of batch norms parameters that do not train, in place: what holds
    weights (checkpoints, averages, exports, shards) holds them too.

    Their counters of batches, which nothing reads, are left out.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.track_running_stats = False  # in eval mode it uses what it has all the same
        for name, buffer in list(part.named_buffers(recurse=False)):
            if name in part._non_persistent_buffers_set:
                continue
            del part._buffers[name]
            if buffer.is_floating_point():
                part.register_parameter(name, nn.Parameter(buffer, requires_grad=False))
            else:
                part.register_buffer(name, None)
    return module


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Draw from torch's own generator of the CPU, seeded by the next number of another."""
    seed = int(torch.randint(1 << 62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def weights_as_around() -> Iterator[None]:
    """Within the context, modules of a library have their parameters on the meta device where that
    is the default, and everything else in memory: tables that no state dict holds could not be had
    later."""
    if torch.get_default_device().type != "meta":
        yield
        return
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta
    try:
        with torch.device("cpu"):
            yield
    finally:
        nn.Module.register_parameter = register
