"""The logits' scale and bias: parameters of the objective, not of a tower."""

import torch
from torch import Tensor, nn

from mmtrain.losses.config import LossConfig
from mmtrain.models import Clip


class Logits:
    """What turns cosines into logits. Every pipeline stage holds it whole.

    Args:
        model: its scale and bias are taken over.
        config: the scale's range.
        device: where they are to be.
    """

    def __init__(self, model: Clip, config: LossConfig, *, device: torch.device) -> None:
        self.scale, self.bias = model.logit_scale, model.logit_bias
        self._range = config.scale_range(model.logit_scale.item())
        for parameter in self.parameters().values():
            parameter.data = parameter.data.to(device)

    def multiplier(self) -> Tensor:
        """What multiplies the cosines; 0-dim."""
        return self.scale.exp()

    def parameters(self) -> dict[str, nn.Parameter]:
        """By their names in the model."""
        named = {"logit_scale": self.scale, "logit_bias": self.bias}
        return {name: value for name, value in named.items() if value is not None}

    def frozen(self) -> list[str]:
        """Names of those that do not train."""
        return [name for name, value in self.parameters().items() if not value.requires_grad]

    @torch.no_grad()
    def add_gradients(self, *, scale: Tensor | None, bias: Tensor | None) -> None:
        """Add gradients that were computed by hand; what is frozen has none."""
        for parameter, gradient in ((self.scale, scale), (self.bias, bias)):
            if parameter is not None and gradient is not None:
                gradient = gradient.to(parameter.dtype).view_as(parameter)
                before = parameter.grad
                parameter.grad = gradient if before is None else before + gradient

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters().values() if p.requires_grad]

    @torch.no_grad()
    def gradients(self) -> Tensor:
        """Of those that train, [N]: this rank's; 0 where there is none."""
        if not self._trained:
            return torch.zeros(0, device=self.scale.device)
        zero = torch.zeros_like(self.scale)
        return torch.stack([zero if p.grad is None else p.grad for p in self._trained])

    @torch.no_grad()
    def take_gradients(self, gradient_N: Tensor) -> None:
        """Those that all ranks agreed on, in the order of `gradients`."""
        for parameter, gradient in zip(self._trained, gradient_N.unbind(), strict=True):
            parameter.grad = gradient.to(parameter.dtype)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the multiplier within its limits, as after every published CLIP update. A frozen one
        is left alone."""
        if self.scale.requires_grad:
            self.scale.clamp_(*self._range)
