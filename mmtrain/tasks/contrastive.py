"""The contrastive objective: from a batch to gradients, over any schedule."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmtrain.data.batch import ImageTextBatch
from mmtrain.data.order.randomness import uniform
from mmtrain.losses import clip_loss, siglip_loss
from mmtrain.losses.config import LossConfig
from mmtrain.models import Clip
from mmtrain.nn.transformer import depth_keep
from mmtrain.parallel import Layout, PipelineSchedule
from mmtrain.peft.lora import DROPOUT_KEYS
from mmtrain.train.adapting import lora_keys
from mmtrain.train.step import LocalSchedule


class ContrastiveObjective:
    """Owns the logits' scale and bias, draws a step's random choices, computes loss and gradients.

    Random choices of the model (patches kept, branches dropped) are drawn here, keyed by each
    sample's position, so that both passes, any microbatches and any layout see the same.
    """

    def __init__(
        self,
        model: Clip,
        config: LossConfig,
        *,
        layout: Layout,
        seed: int,
    ) -> None:
        self.config = config
        self.layout = layout
        self.seed = seed
        self.model_config = model.config
        self.logit_scale = model.logit_scale
        self.logit_bias = model.logit_bias
        self._scale_range = config.scale_range(model.logit_scale.item())
        self.draws_lora_dropout = False
        if config.kind == "siglip" and model.logit_bias is None:
            raise ValueError(
                'loss.kind = "siglip" needs a learned bias; set model.init_logit_bias = -10.0 '
                f"and model.init_logit_scale = {torch.tensor(10.0).log():.4f}"
            )

    def to(self, device: torch.device) -> None:
        """Move the scale and the bias, in place."""
        for parameter in self.parameters().values():
            parameter.data = parameter.data.to(device)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The objective's own parameters by name."""
        named = {"logit_scale": self.logit_scale, "logit_bias": self.logit_bias}
        return {name: value for name, value in named.items() if value is not None}

    def rows(self, batch: ImageTextBatch) -> dict[str, Tensor]:
        """Per-row tensors for every stage: ids, lengths and the random choices of this batch."""
        vision, text = self.model_config.vision, self.model_config.text
        rows = {"tokens_BT": batch.tokens_BT, "length_B": batch.text_length_B}
        if vision.patch_dropout:
            draw_BP = self._draw(batch, "patch dropout", vision.num_patches)
            rows["kept_BP"] = draw_BP.argsort(1)[:, : vision.num_kept].sort(1).values
        for name, tower in (("vision", vision), ("text", text)):
            core = tower.transformer
            if core.stochastic_depth:
                draw = self._draw(batch, f"{name} stochastic depth", 2 * core.num_layers)
                draw_BL2 = draw.unflatten(1, (core.num_layers, 2))
                rows[f"{name}_keep_BL2"] = depth_keep(draw_BL2, rate=core.stochastic_depth)
        if self.draws_lora_dropout:
            rows[DROPOUT_KEYS] = lora_keys(batch, seed=self.seed)
        return rows

    def _draw(self, batch: ImageTextBatch, purpose: str, num: int) -> Tensor:
        return uniform(
            seed=self.seed,
            epoch=batch.epoch,
            position_B=batch.position_B,
            purpose=purpose,
            num=num,
        )

    def loss(self, features_B2E: Tensor, batch: ImageTextBatch) -> Tensor:
        """Mean loss over the global batch, the same on every data-parallel rank.

        Its gradients are scaled for averaging over the data-parallel group.
        """
        image_BE, text_BE = features_B2E.unbind(1)
        arguments = {
            "logit_scale": self.logit_scale.exp(),
            "group": self.layout.group("dp"),
            "labels_B": None if self.config.positives is None else batch.label_B,
            "positives": self.config.positives or "attract",
            "valid_B": batch.valid_B,
        }
        if self.config.kind == "siglip":
            assert self.logit_bias is not None
            return siglip_loss(image_BE, text_BE, logit_bias=self.logit_bias, **arguments)
        return clip_loss(image_BE, text_BE, **arguments)

    def step(
        self,
        schedule: LocalSchedule | PipelineSchedule,
        batch: ImageTextBatch,
        *,
        loss_scale: float = 1.0,
    ) -> Tensor:
        """Loss and gradients of one global batch; the gradients, times `loss_scale`, are added to
        `.grad`.

        Returns:
            The loss, detached and without the scale, the same on every rank.
        """
        rows = self.rows(batch)
        if isinstance(schedule, LocalSchedule) and schedule.single_pass:
            loss = self.loss(schedule.forward(batch.images_BCHW, rows), batch)
            (loss * loss_scale).backward()
        else:
            loss, gradient = torch.zeros((), device=self.layout.device), None
            features = schedule.eval(batch.images_BCHW, rows)
            if features is not None:
                features = features.detach().requires_grad_()
                loss = self.loss(features, batch)
                (loss * loss_scale).backward()
                gradient = features.grad
            schedule.step(batch.images_BCHW, rows, gradient)
        loss = loss.detach().double()  # one dtype on every stage, for the broadcast
        self._agree(loss)
        return loss

    @torch.no_grad()
    def _agree(self, loss: Tensor) -> None:
        """Average the scale's gradients over dp; give them and the loss to all pipeline stages."""
        trained = [p for p in self.parameters().values() if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if (group := self.layout.group("dp")) is not None:
                dist.all_reduce(parameter.grad, group=group)
                parameter.grad /= self.layout.size("dp")
        if (group := self.layout.group("pp")) is not None:
            source = dist.get_global_rank(group, self.layout.last_stage_rank)
            gradients = [p.grad for p in trained if p.grad is not None]
            for tensor in (loss, *gradients):
                dist.broadcast(tensor, source, group=group)

    def figures(self) -> dict[str, float]:
        """The logits' multiplier."""
        return {"logit_scale": self.logit_scale.exp().item()}

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the multiplier within its limits, as after every published CLIP update. A frozen one
        is left alone."""
        assert not isinstance(self.logit_scale, DTensor)
        if self.logit_scale.requires_grad:
            self.logit_scale.clamp_(*self._scale_range)
