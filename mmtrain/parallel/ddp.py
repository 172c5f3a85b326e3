"""Data parallelism with whole weights on every rank, whose gradients are averaged in the backward.

Li et al., arXiv:2006.15704. With ZeRO-1 (optim/zero.py) it is the same, but for the update.

Why torch's own are not used, each measured on two gloo ranks (torch 2.14, the same gradients in
fp64 to the last bit, benchmarks/counting.py):

- DistributedDataParallel sorts its buckets anew after its first step, so that more than two ranks
  then add up in another order and a resumed run differs in its last bits. Told to look for unused
  parameters it does not, but then waits for the device in every step; so it does with
  `static_graph`, 18 times in a step of 18 parameters.
- `replicate` of `torch.distributed._composable`, and `fully_shard` over shards of one rank (which
  `dp_replicate = N`, `dp_shard = 1` still is), wait for nothing, but copy all weights in every
  step: a step of configs/debug_clip.toml has 744 operations and 38.3 MB written against 499 and
  24.6, and 5 sums against 1; 288 MiB of weights want 500 to 700 MiB more memory, and their step
  9 to 36 % more processor time. Their weights are DTensors, which ZeRO-1 cannot share out.

Here the buckets stay, gradients are parts of them, and the host waits for nothing.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtrain.parallel.mesh import Layout
from mmtrain.ranks import gather

BUCKET_BYTES = 25 << 20
"""Gradients that are summed together: large enough for the network, small enough to begin early."""


def replicate(stage: nn.Module, layout: Layout) -> nn.Module:
    """What to call instead of `stage`, so that gradients are averaged over the replicas. The
    parameters stay the stage's, under its names."""
    group = layout.group("dp")
    if group is None or not any(parameter.requires_grad for parameter in stage.parameters()):
        return stage
    return Replica(stage, group=group)


class Replica(nn.Module):
    """A stage of which every rank of a group has all weights.

    As soon as a backward has filled a bucket of gradients it is summed over the ranks, while the
    rest is still computed. Buckets go out in one order on all ranks, and hold what they hold for
    good, so that a sum is the same to the bit whenever it is done.

    Args:
        stage: its weights are made those of the group's first rank.
        group: the replicas; each uses the same parameters.

    Attributes:
        averages: whether a backward averages gradients, or only adds them up.
    """

    def __init__(self, stage: nn.Module, *, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.stage = stage
        self.averages = True
        self._group = group
        trained = [p for p in stage.parameters() if p.requires_grad]
        # A backward ends with the first parameters.
        self._buckets = [_Bucket(alike, group) for alike in _cut(trained[::-1])]
        self._runs, self._num_sent, self._is_checked = False, 0, False
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(
                    lambda filled, bucket=bucket: self._take(filled, bucket)
                )
        with torch.no_grad():
            for parameter in stage.parameters():
                dist.broadcast(parameter, dist.get_global_rank(group, 0), group=group)

    def forward(self, *inputs: Any, **rows: Any) -> Any:
        """The stage's."""
        return self.stage(*inputs, **rows)

    def _take(self, parameter: Tensor, bucket: "_Bucket") -> None:
        """A gradient is complete: send what is full."""
        if not self.averages:
            return
        if not self._runs:
            self._runs = True
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)  # pyright: ignore[reportAttributeAccessIssue]
        bucket.filled.add(parameter)
        while self._num_sent < len(self._buckets) and self._buckets[self._num_sent].is_full:
            self._send_next()

    def _send_next(self) -> None:
        self._buckets[self._num_sent].send()
        self._num_sent += 1

    def _finish(self) -> None:
        """The backward is over: send what nothing filled, and make the averages the gradients."""
        if not self._is_checked:
            self._check()
        while self._num_sent < len(self._buckets):
            self._send_next()
        for bucket in self._buckets:
            bucket.finish()
        self._runs, self._num_sent = False, 0

    def _check(self) -> None:
        """Refuse, in the first step, ranks that use other parameters than the rest: sums of
        unequal size hang or mix up memory."""
        self._is_checked = True
        names = {p: name for name, p in self.stage.named_parameters()}
        mine = [names[p] for bucket in self._buckets for p in bucket.used]
        for theirs in gather(mine):
            if odd := set(mine) ^ set(theirs):
                raise ValueError(
                    f"some ranks have no gradient for {', '.join(sorted(odd))}; all must use the "
                    "same parameters"
                )


class _Bucket:
    """Gradients that are summed together."""

    def __init__(self, parameters: list[nn.Parameter], group: dist.ProcessGroup) -> None:
        self.parameters, self._group = parameters, group
        self.filled: set[Tensor] = set()
        self._work: dist.Work | None = None

    @property
    def is_full(self) -> bool:
        return len(self.filled) == len(self.parameters)

    @property
    def used(self) -> list[nn.Parameter]:
        return [p for p in self.parameters if p.grad is not None]

    @torch.no_grad()
    def send(self) -> None:
        """Begin the sum. From here on the gradients are parts of the bucket, so that there is one
        copy of them."""
        used = self.used
        if not used:
            return
        gradients = [p.grad for p in used if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        flat.mul_(1 / dist.get_world_size(self._group))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(used, parts, strict=True):
            parameter.grad = part.view(parameter.shape)
        self._work = dist.all_reduce(flat, group=self._group, async_op=True)

    def finish(self) -> None:
        """Let whatever reads the gradients come behind the sum."""
        if self._work is not None:
            self._work.wait()
        self._work = None
        self.filled.clear()


def _cut(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Runs of one dtype and device, up to the size of a bucket."""
    run: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        like = run and (run[0].dtype, run[0].device) == (parameter.dtype, parameter.device)
        if run and (not like or size + parameter.nbytes > BUCKET_BYTES):
            yield run
            run, size = [], 0
        run.append(parameter)
        size += parameter.nbytes
    if run:
        yield run
