"""How a trunk is built: without memory where we build so, its statistics as weights that rest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

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


def declare_no_decay(model: Any) -> None:
    """Let a library's model say as our modules do which parameters weight decay leaves alone."""
    for name in getattr(model, "no_weight_decay", set)():
        path, _, leaf = name.rpartition(".")
        try:
            owner = model.get_submodule(path)
        except AttributeError:  # some name what only some of their models have
            continue
        owner.no_decay = (*getattr(owner, "no_decay", ()), leaf)


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Draw from torch's own generator of the CPU, seeded by the next number of another."""
    seed = int(torch.randint(1 << 62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def build_as_around(build: Callable[[], _Module]) -> _Module:
    """A library's module, its parameters on the meta device where that is the default, and
    everything else in memory: tables that no state dict holds could not be had later. Among fake
    tensors all of it is fake."""
    with unset_fake_temporarily() as fake:
        if isinstance(fake, FakeTensorMode):
            with torch.device("meta"):
                module = build_as_around(build)
            return _faked(module, fake)
    if torch.get_default_device().type != "meta":
        return build()
    with torch.device("cpu"):
        try:
            with _parameters_on_meta():
                module = build()
        except RuntimeError:  # one that runs a part of itself while it is built
            module = build()
        if any(buffer.is_meta for buffer in module.buffers()):  # one that makes tables of weights
            module = build()
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, _on_meta(parameter))
    return module


def _faked(module: _Module, fake: FakeTensorMode) -> _Module:
    for part in module.modules():
        for name, x in part.named_parameters(recurse=False):
            with fake:
                new = torch.empty(x.shape, dtype=x.dtype)
            setattr(part, name, nn.Parameter(new, requires_grad=x.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = fake.from_tensor(buffer)
    return module


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Within the context, a parameter has no memory from when a module takes it."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, None if param is None else _on_meta(param))

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register
