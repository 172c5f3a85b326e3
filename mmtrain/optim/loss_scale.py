"""The dynamic loss scale of fp16 training.

fp16's smallest positive number is 6e-8: gradients below it vanish. So the loss is multiplied before
the backward and the gradients are divided after it; where the product overflows, the update is left
out and the scale lowered. Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.

torch's GradScaler looks for overflows in each optimizer's gradients apart, on this rank alone; what
is asked here is whether the one global norm is finite, which all ranks of any layout agree on.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossScaleConfig:
    """The loss scale of precision fp16."""

    initial: float = 2.0**16
    """At the first step."""
    minimum: float = 1.0
    """Where halving ends: an overflow below is a bad step."""
    window: int = 2000
    """Updates without an overflow after which the scale is doubled."""

    def __post_init__(self) -> None:
        if self.minimum <= 0:
            raise ValueError(f"minimum = {self.minimum} must be positive")
        if self.initial < self.minimum:
            raise ValueError(f"initial = {self.initial} must be at least minimum = {self.minimum}")
        if self.window < 1:
            raise ValueError(f"window = {self.window} must be at least 1")


class LossScale:
    """Halved by an overflow, doubled after `window` updates without one.

    It lives where the gradients do, so that a step need not wait to know its scale; the same on
    every rank, since all ranks are told the same.

    Args:
        config: its range and window.
        device: of the gradients.

    Attributes:
        value: 0-dim, fp64.
        updates_since: updates since the scale last changed; 0-dim.
        num_overflows: of the whole run; 0-dim.
    """

    def __init__(self, config: LossScaleConfig, *, device: torch.device) -> None:
        self.config = config
        self.value: Tensor = torch.full((), config.initial, dtype=torch.float64, device=device)
        self.updates_since: Tensor = torch.zeros((), dtype=torch.int64, device=device)
        self.num_overflows: Tensor = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def can_fall(self) -> Tensor:
        """Whether an overflow is answered by a lower scale; 0-dim bool."""
        return self.value > self.config.minimum

    def factor(self) -> Tensor:
        """What multiplies the loss; 0-dim, fp32."""
        return self.value.float()

    def update(self, *, skip: Tensor, overflow: Tensor) -> None:
        """Count a step.

        Args:
            skip: whether its update was held back; 0-dim bool.
            overflow: whether it was because the gradients were too large for the format.
        """
        since = torch.where(skip, self.updates_since, self.updates_since + 1)
        grows = ~skip & (since == self.config.window)
        lower = (self.value / 2).clamp(min=self.config.minimum)
        value = torch.where(grows, self.value * 2, self.value)
        self.value = torch.where(overflow, lower, value)
        self.updates_since = torch.where(overflow | grows, 0, since)
        self.num_overflows = self.num_overflows + overflow

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps. Waits for the device."""
        return {
            "value": self.value.item(),
            "updates_since": self.updates_since.item(),
            "num_overflows": self.num_overflows.item(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for name in ("value", "updates_since", "num_overflows"):
            getattr(self, name).fill_(state[name])
