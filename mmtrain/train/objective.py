"""What the loop asks of a task: the seam between training and what is trained for."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class Objective(Protocol):
    """From a batch to gradients, over any schedule."""

    nothing_learnt: Tensor | None
    """Whether the last batch had nothing to learn from, 0-dim and on the device. None: no batch of
    this objective can be so."""

    def step(self, schedule: Any, batch: Any, *, loss_scale: Tensor | float = 1.0) -> Tensor:
        """Loss and gradients of one global batch; the gradients, times `loss_scale`, are added to
        `.grad`.

        Returns:
            The loss, detached and without the scale, the same on every rank.
        """
        ...

    def row_parts(self, schedule: Any, batch: Any) -> Tensor:
        """Each row's part of the loss with the weights as they are, [R]. On one process."""
        ...

    def num_passes(self, schedule: Any) -> int:
        """Forwards of a step over this schedule."""
        ...

    def images(self, batch: Any) -> Any:
        """A batch's images for the first stage."""
        ...

    def rows(self, batch: Any) -> dict[str, Tensor]:
        """Per-row tensors of a batch for every stage."""
        ...

    def criterion(self, outputs: dict[str, Tensor], rows: dict[str, Tensor]) -> Tensor:
        """What the last stage hands to the schedule of each row, [R, C]."""
        ...

    def parameters(self) -> dict[str, nn.Parameter]:
        """The objective's own parameters by name; every pipeline stage holds them."""
        ...

    def clamp(self) -> None:
        """Bring its parameters back into their range after an update."""
        ...

    def teachers(self) -> dict[str, tuple[str, str]]:
        """Models that are learnt from and that no checkpoint holds, by their key in the recipe:
        path and fingerprint."""
        ...

    def nothing_told(self, keys: Sequence[str]) -> str:
        """What a user is told of a batch with nothing to learn from, and what mends it."""
        ...

    def settle(self) -> None:
        """Before `figures`: bring together what only each rank knows. Collective."""
        ...

    def figures(self) -> dict[str, Any]:
        """What a log line says beside the loss: numbers, and tables of them. Waits for the
        device."""
        ...
