"""A step's random choices, drawn before its passes.

Keyed by each sample's position, so that every pass, microbatch and layout sees the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmtrain.data.batch import SampleBatch
from mmtrain.data.order.randomness import sample_keys, uniform
from mmtrain.data.phases import Phase
from mmtrain.models import VisionConfig
from mmtrain.nn import TransformerConfig
from mmtrain.nn.transformer import depth_keep
from mmtrain.peft.lora import DROPOUT_KEYS


@dataclass(kw_only=True)
class Draws:
    """What the towers do not decide: patches kept, branches dropped, features LoRA does not see."""

    seed: int
    """Of the run."""
    vision: VisionConfig
    """Its patch dropout and stochastic depth."""
    phases: Sequence[Phase] = ()
    """What the phases of the run change about that."""
    text: TransformerConfig
    """Its stochastic depth."""
    text_rows: str = "text_keep_BL2"
    """Name of the text tower's choices, and what they are drawn for."""
    purposes: tuple[str, str] = ("vision stochastic depth", "text stochastic depth")
    """What keys the draws of either tower."""
    lora_dropout: bool = False
    """Whether the model's adapter drops features."""

    def rows(self, batch: SampleBatch, text_position: Tensor) -> dict[str, Tensor]:
        """Per-row choices for every stage.

        Args:
            batch: the images.
            text_position: position of each text, [B] or of several an image, [Q].
        """
        vision, rows = self.vision, {}
        if self.phases:
            vision = vision_in(self.phases[batch.phase], vision)
        if vision.patch_dropout:
            draw_BP = self._draw(batch, batch.position_B, "patch dropout", vision.num_patches)
            rows["kept_BP"] = draw_BP.argsort(1)[:, : vision.num_kept].sort(1).values
        for name, core, position, purpose in (
            ("vision_keep_BL2", vision.transformer, batch.position_B, self.purposes[0]),
            (self.text_rows, self.text, text_position, self.purposes[1]),
        ):
            if core.stochastic_depth:
                draw = self._draw(batch, position, purpose, 2 * core.num_layers)
                draw_L2 = draw.unflatten(1, (core.num_layers, 2))
                rows[name] = depth_keep(draw_L2, rate=core.stochastic_depth)
        if self.lora_dropout:
            rows[DROPOUT_KEYS] = sample_keys(
                seed=self.seed,
                epoch=batch.epoch,
                position_B=batch.position_B,
                purpose="lora dropout",
            )
        return rows

    def _draw(self, batch: SampleBatch, position: Tensor, purpose: str, num: int) -> Tensor:
        return uniform(
            seed=self.seed, epoch=batch.epoch, position_B=position, purpose=purpose, num=num
        )


def vision_in(phase: Phase, vision: VisionConfig) -> VisionConfig:
    """The vision tower's config as it trains in a phase.

    Raises:
        ValueError: it cannot be so.
    """
    own = {"patch_dropout": phase.patch_dropout, "image_size": phase.image_size}
    return replace(vision, **{name: value for name, value in own.items() if value is not None})


def question_positions(position_B: Tensor, num_questions: int) -> Tensor:
    """A position [Q] for every question, from those of the images."""
    num_slots = num_questions // position_B.size(0)
    slot_N = torch.arange(num_slots, device=position_B.device)
    return (position_B[:, None] * num_slots + slot_N).flatten()
