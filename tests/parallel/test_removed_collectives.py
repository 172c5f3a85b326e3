"""The seams' test sees what it is for: take one collective away and it fails.

Each case replaces a single communication by what a rank would have without it and names the
comparison that must notice: loss, gradient, norm or weight.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import RowwiseParallel

from mmtrain.collectives import gather_together
from mmtrain.losses import _blocks, _gradients, _softmax
from mmtrain.optim import clip as optim_clip
from mmtrain.parallel.mesh import ParallelConfig
from mmtrain.parallel.tensor import LocalCompute
from mmtrain.tasks import objective
from mmtrain.tasks.logits import Logits
from tests.parallel.tiny_clip import SIGMOID, SOFTMAX, Trained, tiny_config
from tests.ranks import run_ranks

FSDP = ParallelConfig(dp_shard=2)
TENSOR = ParallelConfig(tp=2, sequence=False)
TENSOR_SEQUENCE = ParallelConfig(tp=2)
PIPELINE = ParallelConfig(pp=2)


def own_texts(tensors: Any, *, group: Any) -> list[torch.Tensor]:
    """A gather that hears of no features from the other rank."""
    first, *rest = gather_together(tensors, group=group)
    return [tensors[0].repeat(first.size(0) // tensors[0].size(0), 1), *rest]


def own_rest(tensors: Any, *, group: Any) -> list[torch.Tensor]:
    """A gather that hears of nothing but features from the other rank."""
    first, *rest = gather_together(tensors, group=group)
    times = first.size(0) // tensors[0].size(0)
    return [first, *(x.repeat(times) for x, _ in zip(tensors[1:], rest, strict=True))]


def keep_own(self: Logits, gradient_N: torch.Tensor) -> None:
    """Every rank goes on with its own gradient of the scale."""
    for parameter, own in zip(self._trained, self.gradients().unbind(), strict=True):
        parameter.grad = own


def own_rows(x: torch.Tensor, *, group: Any) -> torch.Tensor:
    """A scatter of sums that adds nothing."""
    return x.chunk(dist.get_world_size(group))[dist.get_rank(group)].clone()


def as_it_is(x: torch.Tensor, *, group: Any) -> torch.Tensor:
    """A sum over one rank."""
    return x


def without(name: str) -> SimpleNamespace:
    """torch.distributed whose collective `name` does nothing."""
    return SimpleNamespace(**{**vars(dist), name: lambda *args, **kwargs: None})


set_sync = FSDPModule.set_requires_gradient_sync


def sync_first_only(module: FSDPModule, requires_sync: bool) -> None:
    """Of two microbatches the first one's gradients are reduced instead of the last one's."""
    set_sync(module, not requires_sync)


def same_gradient(self: LocalCompute, *, gradient: str) -> None:
    """Every rank's share of a norm's gradient is taken for the whole."""
    self.placement = Replicate()


def unreduced(layouts: Any, use_local: Any, module: Any, outputs: Any, mesh: Any) -> torch.Tensor:
    """A row-sharded product whose parts are not added."""
    return outputs.to_local()


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One communication taken away."""

    target: Any
    name: str
    replacement: Callable[..., Any] | SimpleNamespace | staticmethod
    layout: ParallelConfig
    microbatches: int = 1
    loss: Any = SOFTMAX
    seen_as: str
    """The comparison that fails first."""

    def applied(self) -> AbstractContextManager[Any]:
        """The communication is gone within the context."""
        return mock.patch.object(self.target, self.name, self.replacement)


REMOVALS = {
    "softmax: features gathered": Removal(
        target=_blocks, name="gather_together", replacement=own_texts, layout=FSDP, seen_as="loss"
    ),
    "sigmoid: features gathered": Removal(
        target=_blocks,
        name="gather_together",
        replacement=own_texts,
        layout=FSDP,
        loss=SIGMOID,
        seen_as="loss",
    ),
    "labels and valid rows gathered": Removal(
        target=_blocks, name="gather_together", replacement=own_rest, layout=FSDP, seen_as="loss"
    ),
    "softmax: text gradients scattered": Removal(
        target=_gradients,
        name="scatter_row_sums",
        replacement=own_rows,
        layout=FSDP,
        seen_as="gradient",
    ),
    "sigmoid: text gradients scattered": Removal(
        target=_gradients,
        name="scatter_row_sums",
        replacement=own_rows,
        layout=FSDP,
        loss=SIGMOID,
        seen_as="gradient",
    ),
    "softmax: log-sum-exps summed": Removal(
        target=_softmax, name="sum_", replacement=as_it_is, layout=FSDP, seen_as="loss"
    ),
    "softmax: loss summed": Removal(
        target=objective,
        name="dist",
        replacement=without("all_reduce"),
        layout=FSDP,
        seen_as="loss",
    ),
    "sigmoid: loss summed": Removal(
        target=objective,
        name="dist",
        replacement=without("all_reduce"),
        layout=FSDP,
        loss=SIGMOID,
        seen_as="loss",
    ),
    "scale's gradient averaged over dp": Removal(
        target=Logits,
        name="take_gradients",
        replacement=keep_own,
        layout=FSDP,
        seen_as="gradient",
    ),
    "gradients reduced with the last microbatch": Removal(
        target=FSDPModule,
        name="set_requires_gradient_sync",
        replacement=sync_first_only,
        layout=FSDP,
        microbatches=2,
        seen_as="gradient",
    ),
    "norm summed over shards": Removal(
        target=optim_clip,
        name="dist",
        replacement=without("all_reduce"),
        layout=FSDP,
        seen_as="norm",
    ),
    "tp: partial gradients of norms added": Removal(
        target=LocalCompute,
        name="__init__",
        replacement=same_gradient,
        layout=TENSOR_SEQUENCE,
        seen_as="gradient",
    ),
    "tp: row-sharded products added": Removal(
        target=RowwiseParallel,
        name="_prepare_output_fn",
        replacement=staticmethod(unreduced),
        layout=TENSOR,
        seen_as="loss",
    ),
    "pp: loss broadcast": Removal(
        target=objective,
        name="dist",
        replacement=without("broadcast"),
        layout=PIPELINE,
        microbatches=2,
        seen_as="loss",
    ),
    "pp: scale's gradient broadcast": Removal(
        target=Logits,
        name="take_gradients",
        replacement=keep_own,
        layout=PIPELINE,
        microbatches=2,
        seen_as="gradient",
    ),
    "pp: norm summed over stages": Removal(
        target=optim_clip,
        name="dist",
        replacement=without("all_reduce"),
        layout=PIPELINE,
        microbatches=2,
        seen_as="norm",
    ),
}


def remove_each(rank: int) -> None:
    """On two ranks: whole, the case passes; without its collective a rank sees the difference."""
    config = tiny_config(patch_dropout=0.25)
    wants = {loss: Trained(config, loss).train(num_steps=1) for loss in (SOFTMAX, SIGMOID)}
    for name, removal in REMOVALS.items():
        with removal.applied():
            trained = Trained(
                config,
                removal.loss,
                parallel=removal.layout,
                num_microbatches=removal.microbatches,
            )
            result = trained.train(num_steps=1)
        seen = ""
        try:
            result.check(wants[removal.loss], "case")
        except AssertionError as error:
            seen = str(error).removeprefix("case: ").split()[0]
        everywhere: list[Any] = [None, None]
        dist.all_gather_object(everywhere, seen)
        assert removal.seen_as in everywhere, f"{name}: seen as {everywhere}"


@pytest.mark.slow
def test_a_removed_collective_is_seen() -> None:
    """One at a time."""
    run_ranks(remove_each, 2)
