"""The dynamic loss scale of fp16 training.

fp16's smallest positive number is 6e-8: gradients below it vanish. So the loss is multiplied before
the backward and the gradients are divided after it; where the product overflows, the update is left
out and the scale lowered. Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.

torch's GradScaler looks for overflows in each optimizer's gradients apart, on this rank alone; what
is asked here is whether the one global norm is finite, which all ranks of any layout agree on.
"""

from dataclasses import dataclass
from typing import Any


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

    Plain numbers, the same on every rank, since all ranks are told the same.
    """

    def __init__(self, config: LossScaleConfig) -> None:
        self.config = config
        self.value = config.initial
        self.updates_since = 0
        """Updates since the scale last changed."""
        self.num_overflows = 0
        """Of the whole run."""

    @property
    def can_fall(self) -> bool:
        """Whether an overflow is answered by a lower scale."""
        return self.value > self.config.minimum

    def updated(self) -> None:
        """Count an update that was applied."""
        self.updates_since += 1
        if self.updates_since == self.config.window:
            self.value, self.updates_since = self.value * 2, 0

    def overflowed(self) -> None:
        """Lower the scale: the gradients were too large for the format."""
        assert self.can_fall
        self.value = max(self.value / 2, self.config.minimum)
        self.updates_since = 0
        self.num_overflows += 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "value": self.value,
            "updates_since": self.updates_since,
            "num_overflows": self.num_overflows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.value = state["value"]
        self.updates_since = state["updates_since"]
        self.num_overflows = state["num_overflows"]
