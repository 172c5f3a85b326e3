"""CLIP: two towers and one shared embedding. Radford et al. 2021, arXiv:2103.00020."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmtrain.limits import check_counts
from mmtrain.models.model import Cuts, Model, Stack, Stage, Tower, tower_stacks
from mmtrain.models.slices import slice_tower
from mmtrain.models.text import TextConfig, TextTower
from mmtrain.models.vision import VisionConfig, VisionTower
from mmtrain.nn import HostLengths, unit_norm
from mmtrain.nn.regions import region


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Both towers, the width of the embedding they share, and the logits' scale."""

    vision: VisionConfig
    """The image tower."""
    text: TextConfig
    """The text tower."""
    embed_dim: int = 512
    """Features of the shared embedding."""
    init_logit_scale: float = math.log(1 / 0.07)
    """Initial *log* of the logits' multiplier; SigLIP starts at ln 10."""
    init_logit_bias: float | None = None
    """Initial bias of the logits (SigLIP: -10). None: no bias."""

    def __post_init__(self) -> None:
        check_counts(self, "embed_dim")
        for name, tower in (("vision", self.vision), ("text", self.text)):
            if not tower.projection and tower.transformer.dim != self.embed_dim:
                raise ValueError(
                    f"embed_dim = {self.embed_dim} must be {name}.transformer.dim = "
                    f"{tower.transformer.dim} with {name}.projection = false; set one of the three"
                )


class ClipStage(Stage):
    """The towers, or the same slice of both, as one module of a schedule.

    The first stage takes uint8 images [B, 3, H, W]; between stages travel the tokens of both
    towers. All that is small per row (ids, lengths, random choices) goes to every stage as keyword
    arguments. The last one has the outputs `image` and `text`, unit-norm features [B, E], of which
    the criterion makes what the schedule hands back: without one, both side by side [B, 2 E].
    """

    def __init__(self, vision: VisionTower, text: TextTower) -> None:
        super().__init__()
        self.vision = vision
        self.text = text

    def frozen_outputs(self) -> tuple[str, ...]:
        """Outputs of towers of which nothing trains."""
        towers = {"image": self.vision, "text": self.text}
        return tuple(
            n for n, t in towers.items() if not any(p.requires_grad for p in t.parameters())
        )

    def forward(
        self,
        *inputs: Tensor,
        tokens_BT: Tensor,
        length_B: Tensor,
        kept_BP: Tensor | None = None,
        vision_keep_BL2: Tensor | None = None,
        text_keep_BL2: Tensor | None = None,
        image_BE: Tensor | None = None,
        text_BE: Tensor | None = None,
        host_lengths: HostLengths | None = None,
        only: Literal["text"] | None = None,
        **rows: Tensor,
    ) -> Tensor | tuple[Tensor, ...]:
        """Images, or the towers' tokens -> the towers' tokens, or the criterion's [B, C].

        Args:
            inputs: images, or tokens of each tower that runs.
            image_BE, text_BE: an output that is known; its tower does not run, and its tokens do
                not travel. Only the last stage looks at it.
            host_lengths: as the text tower takes them.
            only: return this output alone.
        """
        given = iter(inputs)
        x: dict[str, Tensor] = {}
        images = next(given) if self.vision.embed is not None else None
        if image_BE is None and only is None:
            tokens = next(given) if images is None else images
            with region("forward: vision"):
                x["image"] = self.vision(tokens, kept_BP=kept_BP, keep_BL2=vision_keep_BL2)
        if text_BE is None:
            tokens = next(given) if self.text.embed is None else tokens_BT
            with region("forward: text"):
                x["text"] = self.text(
                    tokens, length_B=length_B, keep_BL2=text_keep_BL2, host_lengths=host_lengths
                )
        if self.vision.head is None:
            return tuple(x.values())
        x = {name: unit_norm(output) for name, output in x.items()}
        if only is not None:
            return x[only]
        known = {"image": image_BE, "text": text_BE}
        outputs = {n: x[n] if output is None else output for n, output in known.items()}
        if self._criterion is None:
            return torch.cat([outputs["image"], outputs["text"]], dim=1)
        return self._criterion(outputs, rows | {"tokens_BT": tokens_BT, "length_B": length_B})

    def stacks(self) -> dict[str, Stack]:
        """Both towers'."""
        return tower_stacks(vision=self.vision, text=self.text)

    def cuts(self) -> Cuts:
        """As often as the shorter tower has layers: both are cut, side by side."""
        shorter = min(self.stacks().values(), key=lambda stack: stack.blocks.config.num_layers)
        most = shorter.blocks.config.num_layers
        if not most:
            return Cuts(most=1, what=f"{shorter.key.removesuffix('transformer')}trunk")
        return Cuts(most=most, what=f"{shorter.key}.num_layers = {most}")

    def _cut(self, index: int, num_stages: int) -> "ClipStage":
        """The same slice of both towers."""
        return ClipStage(
            slice_tower(self.vision, index, num_stages), slice_tower(self.text, index, num_stages)
        )


class Clip(Model):
    """Image and text towers with the learned scale (and bias) of their logits.

    `logit_scale` and `logit_bias` are driven by the training objective, not by the towers: they
    stay outside of whatever is sharded or pipelined.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision: VisionTower = VisionTower(config.vision, embed_dim=config.embed_dim)
        self.text: TextTower = TextTower(config.text, embed_dim=config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(config.init_logit_scale))
        self.logit_bias: nn.Parameter | None = (
            None
            if config.init_logit_bias is None
            else nn.Parameter(torch.tensor(config.init_logit_bias))
        )

    def init_weights(self, seed: int) -> "Clip":
        """Draw both towers' initial weights (their init_weights tables), the same for a seed."""
        generator = torch.Generator().manual_seed(seed)
        self.vision.init_weights(generator)
        self.text.init_weights(generator)
        nn.init.constant_(self.logit_scale, self.config.init_logit_scale)
        if self.logit_bias is not None and self.config.init_logit_bias is not None:
            nn.init.constant_(self.logit_bias, self.config.init_logit_bias)
        return self

    def towers(self) -> dict[str, Tower]:
        """Both."""
        return {"vision": self.vision, "text": self.text}

    def stage(self) -> ClipStage:
        """The towers as the one stage of a schedule; parameters are shared with this model."""
        return ClipStage(self.vision, self.text)

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> unit-norm [B, E], in fp32 at least. Sizes other than the native one
        interpolate the learned positions; H and W must be multiples of the patch size."""
        return unit_norm(self.vision(images_BCHW))

    def encode_text(self, tokens_BT: Tensor, length_B: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> unit-norm [B, E], in fp32 at least.

        Padding is cut away where it cannot reach the result (causal with end-token pooling, or
        masked); a batch that comes with its lengths is taken to be cut already.
        """
        if length_B is None:
            length_B = self.text.text_length(tokens_BT)
            if self.text.config.cuts_padding:
                tokens_BT = tokens_BT[:, : int(length_B.max())]
        return unit_norm(self.text(tokens_BT, length_B=length_B))
