"""An exponential moving average of the weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mmtrain.optim.local import local


class Ema:
    """Averages of the trainable parameters, with the decay warmed up.

    The average is fp32 (fp64 for fp64 parameters) and sharded as the parameters are. Frozen
    parameters equal their average and are left out.
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], *, decay: float
    ) -> None:
        self.decay = decay
        self._parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self._averages = {name: _average_of(p) for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int, *, skip: Tensor | None = None) -> None:
        """Move the averages towards the weights after an update.

        Args:
            step: number of updates done before this one. Early on the decay is
                (1 + step) / (10 + step), so that the initial weights are soon forgotten.
            skip: 0-dim bool on the weights' device; where it is true the averages stay. The host
                does not read it.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        # Elementwise, so the local shards suffice; foreach over DTensors costs a dispatch for each.
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for name, parameter in self._parameters.items():
            average = local(self._averages[name])
            averages, weights = by_dtype.setdefault(average.dtype, ([], []))
            averages.append(average)
            weights.append(local(parameter).to(average.dtype))
        for dtype, (averages, weights) in by_dtype.items():
            share = 1 - decay
            if skip is not None:
                device = averages[0].device
                moves = torch.full((), share, dtype=dtype, device=device)
                share = [torch.where(skip.to(device), 0, moves)] * len(averages)
            torch._foreach_lerp_(averages, weights, share)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def applied(self, *modules: nn.Module) -> Iterator[None]:
        """Within the context the parameters hold their averages; the weights come back bit for bit.

        Args:
            modules: what the context runs. FSDP keeps the root's gathered weights after a forward
                pass without backward; they are dropped on both sides, or they would outlive the
                exchange.
        """
        weights = {name: local(p).detach().clone() for name, p in self._parameters.items()}
        self._copy_in({name: local(average) for name, average in self._averages.items()}, modules)
        try:
            yield
        finally:
            self._copy_in(weights, modules)

    @torch.no_grad()
    def _copy_in(self, values: dict[str, Tensor], modules: tuple[nn.Module, ...]) -> None:
        for module in modules:
            for part in module.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()
        for name, parameter in self._parameters.items():
            local(parameter).copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name; live tensors, so loading is copying into them."""
        return dict(self._averages)


def _average_of(parameter: nn.Parameter) -> Tensor:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return parameter.detach().to(dtype, copy=True)
