"""What a training step wants of a model's outputs."""

from collections.abc import Callable

from torch import Tensor

Criterion = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]
"""(outputs by name, all per-row tensors) -> [R, C]: what is handed on of each row."""
