"""AdamW on local shards."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from mmtrain.optim.local import local, local_gradient


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW, applied to what this rank holds of every parameter.

    Its state is there from the start, as a checkpoint before any step needs it, and sharded as the
    parameters are. Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, fused=True, **options)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    # fp32 and on the device: what the fused kernel would make itself.
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], float] | None = None, *, skip: Tensor | None = None
    ) -> None:
        """Update every parameter that has a gradient, unless `skip`, a 0-dim bool, is true: then
        nothing changes, and the host need not know."""
        assert closure is None
        found_inf = None if skip is None else skip.float()  # the kernels' name for it
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            states = [self.state[p] for p in parameters]
            beta1, beta2 = group["betas"]
            adamw(
                [local(p) for p in parameters],
                [local_gradient(p) for p in parameters],
                [local(state["exp_avg"]) for state in states],
                [local(state["exp_avg_sq"]) for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
                found_inf=found_inf,
            )
