"""What a stage needs for a microbatch beside its weights, found by running it without memory.

Its own forward and backward run on fake tensors, and every tensor that they make is followed until
it is gone. So what recompute, masks, views and casts do to memory is in the count by itself.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made within it that are still there.

    Args:
        known: tensors that do not count, nor do views of them.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.events: list[tuple[int, int]] = []
        """(number of a tensor's storage, bytes that it added or freed), in order."""
        # By address, which another storage may have later: number and bytes.
        self._there: dict[int, tuple[int, int]] = {
            x.untyped_storage()._cdata: (0, 0) for x in known
        }
        self._last = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # two of three calls, and no tensor
            return args[0].device
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def number(self, tensor: Tensor) -> int:
        """Of its storage, in `events`."""
        return self._there[tensor.untyped_storage()._cdata][0]

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._there:
            return
        self._last += 1
        self._there[storage._cdata] = (self._last, storage.nbytes())
        weakref.finalize(storage, self._release, storage._cdata).atexit = False
        self._count(self._last, storage.nbytes())

    def _release(self, address: int) -> None:
        number, nbytes = self._there.pop(address)
        self._count(number, -nbytes)

    def _count(self, number: int, change: int) -> None:
        self.events.append((number, change))
        self.now += change
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True, kw_only=True)
class SplitBackward:
    """Bytes of a microbatch beside the weights, where the gradients of inputs are computed first,
    those of weights later."""

    inputs: int
    """At most while the gradients of inputs are computed."""
    waits: int
    """Between the halves."""
    weights: int
    """At most while the gradients of weights are computed, which have some to add to."""


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Bytes that one microbatch needs in a stage, beside its weights and what it is given."""

    kept: int
    """From the end of its forward until its backward is done; its output is among it."""
    forward: int
    """At most while its forward runs."""
    backward: int
    """At most while its backward runs, where the weights have gradients to add to."""
    first_backward: tuple[tuple[int, int], ...]
    """While its backward runs where they have none: at each time that one of them comes to be, the
    most that there is beside gradients until the next one does, and all gradients so far."""
    gradients: int
    """Of the weights, whole."""
    split: SplitBackward | None = None
    """Of zero-bubble schedules."""


def stage_memory(
    run: Callable[[], Tensor | tuple[Tensor, ...]],
    *,
    weights: Sequence[nn.Parameter],
    inputs: Sequence[Tensor],
    split: bool = False,
) -> tuple[StageMemory, tuple[Tensor, ...]]:
    """Run a stage forward and backward -> what it needs, and its output.

    Args:
        run: the stage's forward on fake tensors.
        weights: the stage's.
        inputs: what it is given.
        split: once more, the backward in the two halves of zero-bubble schedules.
    """
    with LiveBytes([*weights, *inputs]) as live:
        start = live.peak = live.now
        out = run()
        outputs = out if isinstance(out, tuple) else (out,)
        del out
        kept, forward = live.now - start, live.peak - start
        _backward(outputs, live)
        backward, moments = _moments(live, weights, kept)
        for tensor in inputs:
            tensor.grad = None
        halves = _split_backward(run, live, weights=weights, inputs=inputs) if split else None
    gradients = _gradients(weights)
    for weight in weights:
        weight.grad = None
    memory = StageMemory(
        kept=kept,
        forward=forward,
        backward=backward,
        first_backward=moments,
        gradients=sum(gradient.untyped_storage().nbytes() for gradient in gradients),
        split=halves,
    )
    return memory, tuple(x.detach() for x in outputs)


def _backward(outputs: Sequence[Tensor], live: LiveBytes) -> None:
    """Run it; what it is given is not among the events of `live`, which begin anew."""
    outputs = [x for x in outputs if x.requires_grad]
    gradients = [torch.empty_like(x) for x in outputs]
    live.events.clear()
    if outputs:
        torch.autograd.backward(outputs, gradients)


def _split_backward(
    run: Callable[[], Tensor | tuple[Tensor, ...]],
    live: LiveBytes,
    *,
    weights: Sequence[nn.Parameter],
    inputs: Sequence[Tensor],
) -> SplitBackward:
    """By torch's own functions. Its first stage, whose inputs want no gradient, does all later."""
    # Here: it brings DTensor and dynamo, 2 s that a look at a model need not wait for.
    from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

    start = live.now
    out = run()
    outputs = list(out) if isinstance(out, tuple) else [out]
    del out
    kept = live.now - start
    gradients = [torch.empty_like(x) for x in outputs]
    given = live.now - kept - start
    live.peak = live.now
    if not any(x.requires_grad for x in inputs):
        torch.autograd.backward(outputs, gradients)
        return SplitBackward(inputs=kept, waits=kept, weights=live.peak - given - start)
    _, groups = stage_backward_input(outputs, gradients, list(inputs), iter(weights))
    most = live.peak - given - start
    outputs.clear()
    gradients.clear()
    for x in inputs:
        x.grad = None
    waits = live.now - start
    live.peak = live.now
    stage_backward_weight(iter(weights), groups)
    return SplitBackward(inputs=most, waits=waits, weights=live.peak - start)


def _gradients(weights: Iterable[nn.Parameter]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


def _moments(
    live: LiveBytes, weights: Iterable[nn.Parameter], kept: int
) -> tuple[int, tuple[tuple[int, int], ...]]:
    """StageMemory's backward, where a gradient is gone when it has been added, and its
    first_backward, where it stays."""
    mine = {live.number(gradient) for gradient in _gradients(weights)}
    other, made, found = kept, 0, {0: kept}
    later = kept
    for number, change in live.events:
        if number in mine:
            made += change
            later = max(later, other + change)
        else:
            other += change
            later = max(later, other)
        found[made] = max(found.get(made, 0), other)
    return later, tuple((most, gradients) for gradients, most in found.items())
