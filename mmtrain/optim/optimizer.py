"""Parameters sorted into groups, and the optimizers that update them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mmtrain.errors import UsageError
from mmtrain.optim.adamw import AdamW
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.muon import Muon
from mmtrain.optim.zero import own_part, share_out


class Optimizers:
    """The optimizers of one model, driven together.

    A group's learning rate is its peak (`peak_lr`, layer-wise decay included) times the one factor
    that the schedule gives.
    """

    def __init__(
        self, optimizers: list[torch.optim.Optimizer], names: dict[nn.Parameter, str], *, lr: float
    ) -> None:
        self.optimizers = optimizers
        self._names = names
        self._peak_lr = lr
        self.lr: float = lr

    def set_lr(self, factor: float) -> None:
        """Set every group's learning rate to `factor` of its peak; `lr` follows the recipe's."""
        self.lr = self._peak_lr * factor
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor

    def step(self, *, skip: Tensor | None = None) -> None:
        """Update the parameters from their gradients.

        Args:
            skip: 0-dim bool on the gradients' device; where it is true nothing changes. The host
                does not read it.
        """
        if skip is not None and (first := next(iter(self._names), None)) is not None:
            skip = skip.to(first.device)  # offloaded parameters are elsewhere
        for optimizer in self.optimizers:
            optimizer.step(skip=skip)  # pyright: ignore[reportCallIssue]

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self._names:
            parameter.grad = None

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The optimizers' tensors by parameter name: `{name: {"exp_avg": ..., "step": ...}}`; of
        the parameters that this rank updates.

        They are the live tensors and complete from the first step on: loading is copying into them.
        Names do not depend on the layout, so neither does a checkpoint. Hyperparameters are not
        part of it, the recipe holds them.
        """
        return {
            name: dict(optimizer.state[parameter])
            for parameter, name in self._names.items()
            for optimizer in map(own_part, self.optimizers)
            if parameter in optimizer.state
        }

    def load_moments(
        self, moments: Mapping[str, Mapping[str, Tensor]], *, steps: float
    ) -> set[str]:
        """Copy AdamW's moments of another training -> the names of the parameters that got theirs.

        Args:
            moments: whole tensors, `{name: {"exp_avg": ..., "exp_avg_sq": ...}}`; another shape
                than the parameter's, or a parameter that AdamW does not update, is left out.
            steps: updates that they are of.
        """
        taken: set[str] = set()
        for name, state in self.state_dict().items():
            found = moments.get(name, {})
            if not found or {*found, "step"} != state.keys():
                continue
            if all(found[key].shape == state[key].shape for key in found):
                for key, whole in found.items():
                    _copy_whole(whole, state[key])
                state["step"].fill_(steps)
                taken.add(name)
        return taken


def _copy_whole(whole: Tensor, target: Tensor) -> None:
    """Copy a tensor, or the part of it that this rank holds."""
    if isinstance(target, DTensor):
        shape, start = compute_local_shape_and_global_offset(
            target.shape, target.device_mesh, target.placements
        )
        bounds = zip(start, shape, strict=True)
        whole = whole[tuple(slice(first, first + size) for first, size in bounds)]
        target = target.to_local()
    target.copy_(whole)


def build_optimizers(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimConfig,
    *,
    no_decay: set[str],
    hidden_matrices: set[str],
    layer_ids: Mapping[str, tuple[int, int]] | None = None,
    lr_factors: Mapping[str, float] | None = None,
    zero_group: dist.ProcessGroup | None = None,
    bf16_products: bool = False,
) -> Optimizers:
    """Group the trainable parameters and build AdamW, and Muon where the recipe asks for it.

    Args:
        named_parameters: frozen ones are left out.
        no_decay: names without weight decay (AdamW only; matrices always decay under Muon).
        hidden_matrices: names that Muon may take: q, k, v, o and feed-forward matrices.
        layer_ids: (layer, layers above it) by name, needed for layer_decay < 1; names that are
            missing keep the full learning rate.
        lr_factors: multiplies the learning rate, by name; names that are missing keep theirs.
        zero_group: ranks with the same parameters, which share out the work and its state (ZeRO-1).
        bf16_products: let Muon multiply in bf16 on a CPU too.

    Raises:
        UsageError: what a setting of the config needs is not given.
    """
    if layer_ids is None and config.layer_decay != 1:
        raise UsageError(f"layer_decay = {config.layer_decay} needs layer_ids, the depth by name")
    named_parameters = list(named_parameters)
    if config.kind == "muon" and hidden_matrices.isdisjoint(name for name, _ in named_parameters):
        raise UsageError(
            'kind = "muon" has no effect: hidden_matrices names no parameter that is there; name '
            'them as named_parameters does, or use kind = "adamw"'
        )
    names: dict[nn.Parameter, str] = {}
    groups: dict[Any, dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        names[parameter] = name
        muon = config.kind == "muon" and name in hidden_matrices
        layers_above = layer_ids[name][1] if layer_ids and name in layer_ids else 0
        factor = config.layer_decay**layers_above * (lr_factors or {}).get(name, 1.0)
        decays = muon or name not in no_decay
        lr = factor * (config.muon_lr if muon else config.lr)
        weight_decay = config.muon_weight_decay if muon else config.weight_decay
        group = groups.setdefault(
            (muon, decays, factor),
            {
                "params": [],
                "lr": lr,
                "peak_lr": lr,
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if adamw_groups := [group for key, group in groups.items() if not key[0]]:
        options = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
        optimizers += _build(AdamW, adamw_groups, zero_group, options)
    if muon_groups := [group for key, group in groups.items() if key[0]]:
        momentum, adjust = config.muon_momentum, config.muon_adjust
        options = {"lr": config.muon_lr, "momentum": momentum, "adjust": adjust}
        options["bf16_products"] = bf16_products
        optimizers += _build(Muon, muon_groups, zero_group, options)
    return Optimizers(optimizers, names, lr=config.lr)


def _build(
    kind: type[torch.optim.Optimizer],
    groups: list[dict[str, Any]],
    zero_group: dist.ProcessGroup | None,
    options: dict[str, Any],
) -> list[torch.optim.Optimizer]:
    if zero_group is None:
        return [kind(groups, **options)]
    return list(share_out(kind, groups, zero_group, **options))
