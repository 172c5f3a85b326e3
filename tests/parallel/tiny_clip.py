"""A small real CLIP and batches for it, shaped to catch what toys hide: an odd token count, captions
of unequal length, end-token pooling, random choices inside the model, repeated labels."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmtrain.data.batch import ImageTextBatch
from mmtrain.models import Clip, ClipConfig, ClipStage, TextConfig, VisionConfig
from mmtrain.nn import TransformerConfig
from mmtrain.parallel import Layout, ParallelConfig, build_layout, parallelize
from mmtrain.train.contrastive import ContrastiveObjective, LossConfig
from mmtrain.train.step import build_schedule

END = 60
CPU = torch.device("cpu")


def tiny_config(**vision: Any) -> ClipConfig:
    """17 image tokens (16 patches and a class token), texts of at most 11 tokens."""
    core = TransformerConfig(dim=32, num_layers=4, num_heads=4, stochastic_depth=0.2)
    text = dataclasses.replace(core, mask="causal", init="scaled")
    fields = {"image_size": 32, "patch_size": 8, "transformer": core} | vision
    return ClipConfig(
        vision=VisionConfig(**fields),
        text=TextConfig(vocab_size=64, end_token_id=END, context_length=11, transformer=text),
        embed_dim=16,
        init_logit_bias=-10.0,
    )


def make_batch(num_rows: int = 8, *, step: int = 0) -> ImageTextBatch:
    """A global batch; rows differ in length, some share a label, one is padding."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (num_rows, 3, 32, 32), generator=generator)
    tokens = torch.randint(0, END, (num_rows, 11), generator=generator)
    length = torch.randint(3, 12, (num_rows,), generator=generator)
    tokens[torch.arange(num_rows), length - 1] = END
    tokens[torch.arange(11) >= length[:, None]] = 0
    label = torch.tensor([5, -1, 7, 5, -1, 7, 7, -1]).repeat(num_rows // 8)
    valid = torch.ones(num_rows, dtype=torch.bool)
    valid[-1] = False
    return ImageTextBatch(
        images_BCHW=images.to(torch.uint8).contiguous(memory_format=torch.channels_last),
        tokens_BT=tokens,
        text_length_B=length,
        label_B=label,
        position_B=torch.arange(num_rows) + num_rows * step,
        valid_B=valid,
        epoch=0,
        keys=tuple(str(row) for row in range(num_rows)),
    )


def take_rows(batch: ImageTextBatch, rank: int, size: int) -> ImageTextBatch:
    """One data-parallel coordinate's contiguous share of the rows."""
    fields = {
        field.name: value.chunk(size)[rank]
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return dataclasses.replace(batch, **fields)


def full(tensor: Tensor) -> Tensor:
    """The whole of a distributed tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Trained:
    """A laid-out model, its objective and schedule."""

    def __init__(
        self,
        config: ClipConfig,
        loss: LossConfig,
        *,
        parallel: ParallelConfig | None = None,
        num_microbatches: int = 1,
        dtype: str = "fp64",
        compile: bool = False,
    ) -> None:
        self.layout = (
            Layout(device=CPU, config=ParallelConfig())
            if parallel is None
            else build_layout(parallel, CPU)
        )
        self.model = Clip(config).init_weights(0)
        if dtype == "fp64":
            self.model.double()
        self.stages: list[ClipStage] = parallelize(
            self.model, self.layout, precision=dtype, compile=compile
        )
        self.objective = ContrastiveObjective(self.model, loss, layout=self.layout, seed=3)
        self.schedule = build_schedule(self.stages, self.layout, num_microbatches=num_microbatches)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Every trained parameter held here, by name."""
        named = {n: p for stage in self.stages for n, p in stage.named_parameters()}
        return named | self.objective.parameters()

    def step(self, batch: ImageTextBatch) -> Tensor:
        """Loss of a global batch; gradients are accumulated."""
        rows = take_rows(batch, self.layout.rank("dp"), self.layout.size("dp"))
        return self.objective.step(self.schedule, rows)


def reference(
    config: ClipConfig, loss: LossConfig, *, num_steps: int
) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """Losses, first gradients and final weights of a single process in one pass."""
    return train(Trained(config, loss), num_steps=num_steps)


def train(
    trained: Trained, *, num_steps: int
) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """The same, of any layout: what this rank holds, gathered over tp and dp."""
    parameters = trained.parameters()
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, eps=1e-4, foreach=False)
    losses, gradients = [], {}
    for step in range(num_steps):
        losses.append(trained.step(make_batch(step=step)).item())
        if step == 0:
            gradients = {
                n: full(p.grad).clone() for n, p in parameters.items() if p.grad is not None
            }
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients, {n: full(p.detach()).clone() for n, p in parameters.items()}


def worst(got: dict[str, Tensor], want: dict[str, Tensor]) -> tuple[float, str]:
    """Largest per-tensor relative error (norm of the difference over the norm), and its name.

    A key's bias has zero true gradient: what is there is rounding, measured against 1.
    """
    errors = []
    for name, value in got.items():
        scale = want[name].norm().item()
        scale = scale if scale > 1e-12 else 1.0
        errors.append(((value - want[name]).norm().item() / scale, name))
    return max(errors)
