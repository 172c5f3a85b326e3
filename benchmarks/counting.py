"""What a computation asks of a device, counted exactly on a machine that has none.

The processor stands in for the device. Tensors that a step is handed from the data are the host's,
and so is what is made of them alone, until they are copied `to` the device; all others are the
device's. Where the host reads one of the device's, or copies to it without `non_blocking`, a GPU
would make it wait until all queued work is done.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VIEWS = [
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "expand",
    "unsqueeze",
    "squeeze",
    "slice",
    "select",
    "detach",
    "alias",
    "unbind",
    "split",
    "split_with_sizes",
    "as_strided",
    "reshape",
    "_reshape_alias",
    "diagonal",
    "chunk",
    "unfold",
    "lift_fresh",
]
"""Operations that touch no numbers."""
_RESERVES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
"""Operations that find memory and write none of it."""
_READS = [
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
]
"""Operations whose result, or its size, the host reads."""
_INDEXED = ("index", "index_put", "index_put_")
"""Those that read a mask to know how many numbers it chooses."""
_READ_BY = ("tolist", "numpy", "cpu", "__array__")
"""Methods of a tensor that read it and are no operation on a processor."""
_COPIES_IN = ("tensor", "as_tensor", "new_tensor", "asarray")
"""Functions that copy numbers of the host's to the device."""
_FACTORIES = ("tensor", "as_tensor", "empty", "zeros", "ones", "full", "arange", "rand", "randn")
"""Functions that make the host's tensors where they are told no device."""
_PLACES = {
    "optimizer": ("/mmtrain/optim/muon.py", "/torch/distributed/optim/"),
    "gradients": ("/torch/distributed/fsdp/", "/mmtrain/parallel/ddp.py"),
    "activations": (
        "/torch/distributed/tensor/",
        "/torch/distributed/pipelining/",
        "/mmtrain/parallel/",
        "/mmtrain/losses/vocabulary.py",
    ),
}
"""What a collective is for, by the file that asks for it: the first that is in the stack."""


class Counts(TorchDispatchMode):
    """Within the context all operations are counted.

    Attributes:
        operations: by name, views left out; those that change a format are `cast`.
        bytes_written: by the same names.
        waits: by file, line and what waits.
        collectives: by what they are for.
        sent: bytes of their inputs, by the same purposes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.bytes_written: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.on_host = self.moving = self.paused = False
        self._functions = _Functions(self)
        self._host: dict[int, torch.UntypedStorage] = {}
        """By address; held, so that no other storage gets it."""

    def give_host(self, tensors: Iterable[Tensor]) -> None:
        """Note that tensors are the host's."""
        for x in tensors:
            self._keep(x)

    @property
    def casts(self) -> int:
        """Copies of numbers into another format."""
        return self.operations["cast"]

    def is_host(self, x: Tensor) -> bool:
        """Whether a tensor is the host's."""
        return _is_plain(type(x)) and x.untyped_storage().data_ptr() in self._host

    def restart(self) -> None:
        """Forget what was counted, but not which tensors are the host's."""
        for counter in (self.operations, self.bytes_written, self.waits):
            counter.clear()
        for counter in (self.collectives, self.sent):
            counter.clear()

    def wait(self, what: str) -> None:
        """Note that the host waits."""
        self.waits[f"{_place()} {what}"] += 1

    def __enter__(self) -> "Counts":
        self._functions.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not all(map(_is_plain, types)):
            return NotImplemented  # a DTensor's own operations come here again, on local tensors
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.paused:
            return out
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count_collective(func._opname, given)
        elif self.on_host if not given else all(map(self.is_host, given)) and not self.moving:
            for x in made:
                self._keep(x)
        else:
            self._count(func._opname, args, kwargs, made)
        return out

    def _keep(self, x: Tensor) -> None:
        if not self.is_host(x):
            self._host[x.untyped_storage().data_ptr()] = x.untyped_storage()

    def _count(self, name: str, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        """An operation of the device."""
        if name in _READS or (name in _INDEXED and any(map(_is_mask, args[1]))):
            self.wait(name)
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.wait(name)
        if name == "copy_" and self.is_host(args[0]) != self.is_host(args[1]) and not args[2:]:
            self.wait(name)
        if name in VIEWS:
            return
        if name == "_to_copy" and made[0].dtype != args[0].dtype:
            name = "cast"
        if name == "_foreach_copy_":
            made = args[0]
            name = "cast" if made[0].dtype != args[1][0].dtype else name
        self.add(name, made)

    def add(self, name: str, made: Iterable[Tensor]) -> None:
        """Count an operation that made these."""
        self.operations[name] += 1
        if name not in _RESERVES:
            self.bytes_written[name] += sum(x.nbytes for x in made)

    def _count_collective(self, name: str, given: list[Tensor]) -> None:
        if name in ("wait_tensor", "monitored_barrier_"):
            return
        purpose = _purpose()
        self.collectives[purpose] += 1
        self.sent[purpose] += max((x.nbytes for x in given), default=0)


class _OneKernelNorm(torch.autograd.Function):
    """torch's rms_norm, counted as what it is on CUDA: one kernel forward and one backward. On a
    processor it is a dozen operations."""

    @staticmethod
    def forward(ctx: Any, counts: Counts, x: Tensor, shape: Any, weight: Tensor, eps: float) -> Any:
        ctx.counts = counts
        counts.paused = True
        with torch.enable_grad():
            ctx.given = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
            ctx.made = torch.rms_norm(ctx.given[0], shape, ctx.given[1], eps)
        counts.paused = False
        counts.add("_fused_rms_norm", [ctx.made])
        return ctx.made.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        counts = ctx.counts
        counts.paused = True
        with torch.enable_grad():
            made = torch.autograd.grad(ctx.made, ctx.given, gradients)
        counts.paused = False
        counts.add("_fused_rms_norm_backward", made)
        return None, made[0], None, made[1], None


def _is_plain(kind: type) -> bool:
    return kind in (Tensor, nn.Parameter)


def _is_mask(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)


class _Functions(TorchFunctionMode):
    """What no operation shows: methods that read, and functions that are told a device."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counts, kwargs = self._counts, kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "rms_norm":
            return _OneKernelNorm.apply(counts, *args, *kwargs.values())
        me = args[0] if args and isinstance(args[0], Tensor) else None
        told = kwargs.get("device") is not None
        if name in _READ_BY and me is not None and not counts.is_host(me):
            counts.wait(name)
        if name in _COPIES_IN and (told or name == "new_tensor"):
            counts.wait(name)
        before = counts.on_host, counts.moving
        if name == "to" and me is not None and counts.is_host(me) and _moves(args, kwargs):
            if not kwargs.get("non_blocking"):
                counts.wait("to")
            counts.moving = True
            args = (me.clone(), *args[1:])
        counts.on_host = name in _FACTORIES and not told
        try:
            out = func(*args, **kwargs)
        finally:
            counts.on_host, counts.moving = before
        if name in _COPIES_IN and not told and name != "new_tensor":
            counts.give_host([out])  # what no operation has shown
        return out


def _moves(args: Any, kwargs: Any) -> bool:
    """Whether `to` was told a device."""
    return any(isinstance(x, str | torch.device) for x in (*args[1:], *kwargs.values()))


def _files() -> Iterator[tuple[str, int]]:
    """The files of the stack and their lines, innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _place() -> str:
    """The innermost line of the package."""
    for name, line in _files():
        if "/mmtrain/" in name:
            return f"{name.rpartition('/mmtrain/')[2]}:{line}"
    return "elsewhere"


def _purpose() -> str:
    """What the collective that is asked for is for."""
    names = [name for name, _ in _files()]
    for purpose, parts in _PLACES.items():
        if any(part in name for part in parts for name in names):
            return purpose
    return "beside"
