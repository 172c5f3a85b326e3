"""What any rank has to say of a step: one reduction, known to the device at once and to the host
when it asks.

A host that asked at every step would wait for the device each time, and queue nothing meanwhile.
So the update is held back on the device, by the same flags, and the host reads them a step later.
"""

from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
from torch import Tensor

from mmtrain.optim.clip import Rider
from mmtrain.ranks import is_alone


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the host of a rank says of a step; one rank's word counts."""

    stop: bool = False
    """It was told to stop."""
    save: bool = False
    """Its clock says that a checkpoint is due."""
    save_failed: bool = False
    """It knows that the checkpoint in the background could not be written."""
    bad_samples: bool = False
    """Some of its samples were replaced."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """The same of all ranks, and what their devices found."""

    wishes: Wishes
    bad_loss: bool
    """A loss is not finite."""
    bad_norm: bool
    """A gradient norm is not finite."""
    nothing: bool
    """The batch has nothing to learn from."""
    overflow: bool
    """Only scaled gradients were not finite, and the scale can fall."""


class StepFlags:
    """The flags of one step. Collective over all ranks, unless a norm's sum took them along; waits
    for nothing until `read`.

    Args:
        loss: this rank's, a scalar.
        grad_norm: the norm before clipping, a scalar.
        wishes: this rank's.
        nothing: 0-dim bool, whether the batch has nothing to learn from. None: it has.
        own: `own_flags` of the same, which may be summed over the ranks already. None: make them.
        can_fall: 0-dim bool, whether the loss scale can. None: there is none.

    Attributes:
        overflow: 0-dim bool on the device, as in `Said`.
        skip: 0-dim bool on the device: the update is to change nothing.
    """

    def __init__(
        self,
        *,
        loss: Tensor,
        grad_norm: Tensor,
        wishes: Wishes,
        nothing: Tensor | None = None,
        own: Rider | None = None,
        can_fall: Tensor | None = None,
    ) -> None:
        device = loss.device
        never = torch.zeros((), dtype=torch.bool, device=device)
        own = own_flags(loss=loss, wishes=wishes, nothing=nothing) if own is None else own
        # Of a norm that carried the others the sum is the same on all ranks.
        bad = ~grad_norm.to(device, non_blocking=True).isfinite()
        flags = torch.cat([bad.double()[None], own.values_N])
        if not is_alone() and not own.is_summed:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        flags = flags > 0
        bad_norm, bad_loss, empty = flags[:3]
        self.overflow = bad_norm & ~bad_loss & (never if can_fall is None else can_fall)
        self.skip = bad_loss | bad_norm | empty
        told = torch.cat([flags, self.overflow[None]])
        self._host = torch.empty(told.shape, dtype=told.dtype, pin_memory=device.type == "cuda")
        self._host.copy_(told, non_blocking=True)
        self._done = torch.cuda.Event() if device.type == "cuda" else None
        if self._done is not None:
            self._done.record()

    def read(self) -> Said:
        """What was said; waits until the device has come to this step's end."""
        if self._done is not None:
            self._done.synchronize()
        bad_norm, bad_loss, nothing, *wishes, overflow = self._host.tolist()
        return Said(
            wishes=Wishes(**dict(zip(_NAMES, wishes, strict=True))),
            bad_loss=bad_loss,
            bad_norm=bad_norm,
            nothing=nothing,
            overflow=overflow,
        )


_NAMES = tuple(field.name for field in fields(Wishes))


def own_flags(*, loss: Tensor, wishes: Wishes, nothing: Tensor | None = None) -> Rider:
    """What this rank says of a step before its gradient norm is known; arguments as `StepFlags`."""
    bad = ~loss.isfinite()
    found = torch.stack([bad, torch.zeros_like(bad) if nothing is None else nothing])
    return Rider(values_N=torch.cat([found, _on_device(wishes, loss.device)]).double())


def _on_device(wishes: Wishes, device: torch.device) -> Tensor:
    """The flags as int32, sent as one number: a fill, where a copy would wait for the device."""
    bits = sum(getattr(wishes, name) << place for place, name in enumerate(_NAMES))
    places = torch.arange(len(_NAMES), dtype=torch.int32, device=device)
    return torch.full((), bits, dtype=torch.int32, device=device) >> places & 1
