"""The sections [loss] and [vqa.loss] of a recipe."""

import math
from dataclasses import dataclass
from typing import Literal

from mmtrain.losses.answer import AnswerLoss

SIGLIP_BIAS = -10.0
"""Of the logits at first (Zhai et al. 2023, arXiv:2303.15343, section 3.2)."""
STANDARD_LIMIT = 100.0
"""Of the logits' multiplier, as every published CLIP has it."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss, and what it takes for a match."""

    kind: Literal["clip", "siglip"] = "clip"
    """clip: softmax over the batch (InfoNCE); siglip: pairwise sigmoid. Where nothing is said, a
    model with a bias of its logits (a SigLIP by name, or that a run starts from) takes siglip."""
    positives: Literal["attract", "ignore"] | None = None
    """How pairs of the same label count: as positives, or not at all. None: labels are not used."""
    max_logit_scale: float | None = None
    """Upper limit of the logits' multiplier, enforced after every update; the lower one is 1. None:
    100, and a model that a run starts from beyond either limit keeps its own as the limit."""

    def __post_init__(self) -> None:
        if self.max_logit_scale is not None and self.max_logit_scale < 1:
            raise ValueError(f"max_logit_scale = {self.max_logit_scale} must be at least 1")

    def scale_range(self, start: float) -> tuple[float, float]:
        """Lowest and highest *log* of the logits' multiplier of a run that starts at `start`."""
        if self.max_logit_scale is not None:
            return 0.0, math.log(self.max_logit_scale)
        return min(0.0, start), max(math.log(STANDARD_LIMIT), start)


@dataclass(frozen=True, kw_only=True)
class AnswerLossConfig:
    """What it costs to answer wrongly."""

    classify: AnswerLoss = "bce"
    """bce: each answer's binary cross-entropy against its score, summed over the answers; ce: one
    softmax over all of them, against the scores scaled to sum to 1."""
    generate_weight: float = 1.0
    """Of the mean over answers' tokens, where there is a `classify` beside `generate`."""

    def __post_init__(self) -> None:
        if self.generate_weight <= 0:
            raise ValueError(f"generate_weight = {self.generate_weight} must be positive")
