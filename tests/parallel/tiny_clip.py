"""Small real CLIPs and batches for them, shaped to catch what toys hide: odd token counts, captions
of unequal length, end-token pooling, random choices inside the model, repeated labels."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmtrain.data.batch import ImageTextBatch
from mmtrain.models import Clip, ClipConfig, TextConfig, VisionConfig
from mmtrain.models.parameters import hidden_matrix_names, lock_tower, no_decay_names
from mmtrain.nn import TransformerConfig
from mmtrain.optim.clip import clip_gradients
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.optimizer import build_optimizers
from mmtrain.parallel.apply import parallelize
from mmtrain.parallel.mesh import Layout, ParallelConfig, build_layout
from mmtrain.tasks.config import LossSection
from mmtrain.tasks.contrastive import contrastive_objective
from mmtrain.train.step import build_schedule

END = 60
CONTEXT = 11
CPU = torch.device("cpu")
TOLERANCE = 1e-9
MAX_NORM = 0.05
"""Far below the first gradients' norm, so that clipping acts."""
SOFTMAX = LossSection(kind="clip", positives="attract")
SIGMOID = LossSection(kind="siglip", positives="ignore")


def tiny_config(num_layers: int = 2, **vision: Any) -> ClipConfig:
    """OpenAI's form: 17 image tokens (16 patches and a class token), causal texts of at most 11
    tokens, pooled at their end."""
    core = TransformerConfig(dim=32, num_layers=num_layers, num_heads=4, stochastic_depth=0.2)
    text = dataclasses.replace(core, mask="causal", init="scaled")
    return _config(core, text, vision=vision)


def modern_config(num_layers: int = 2) -> ClipConfig:
    """Rotary positions, RMS norms, normalised queries and keys, grouped heads, gated feed-forward,
    learned branch scales, registers; texts see both ways and hide their padding."""
    core = TransformerConfig(
        dim=32,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        activation="swiglu",
        norm="rms",
        qk_norm="rms",
        layer_scale=0.5,
        qkv_bias=False,
        stochastic_depth=0.2,
    )
    vision = {"positions": "rope_2d", "num_registers": 2, "pool": "mean", "patch_dropout": 0.25}
    return _config(core, core, vision=vision, text={"positions": "rope", "pool": "mean"})


def siglip_config(num_layers: int = 2) -> ClipConfig:
    """SigLIP's form: no class token, attention pooling, texts pooled at their last token."""
    core = TransformerConfig(dim=32, num_layers=num_layers, num_heads=4, activation="gelu_tanh")
    vision = {
        "class_token": False,
        "embed_norm": False,
        "patch_bias": True,
        "pool": "attention",
        "pool_norm": "before",
        "patch_dropout": 0.3,  # leaves 11 of 16 patches
    }
    text = {"pool": "last", "mask_padding": False, "projection_bias": True}
    return _config(core, core, vision=vision, text=text)


def _config(
    vision_core: TransformerConfig,
    text_core: TransformerConfig,
    *,
    vision: dict[str, Any],
    text: dict[str, Any] | None = None,
) -> ClipConfig:
    image = {"image_size": 32, "patch_size": 8, "transformer": vision_core} | vision
    return ClipConfig(
        vision=VisionConfig(**image),
        text=TextConfig(
            vocab_size=64,
            end_token_id=END,
            context_length=CONTEXT,
            transformer=text_core,
            **(text or {}),
        ),
        embed_dim=16,
        init_logit_bias=-10.0,
    )


def make_batch(
    num_rows: int = 8, *, step: int = 0, longest: int = CONTEXT, width: int = CONTEXT
) -> ImageTextBatch:
    """A global batch; rows differ in length, some share a label, one is padding.

    Args:
        num_rows: a multiple of 8.
        step: which batch.
        longest: tokens of a text at most.
        width: that texts are padded to.
    """
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (num_rows, 3, 32, 32), generator=generator)
    tokens = torch.randint(0, END, (num_rows, width), generator=generator)
    length = torch.randint(3, longest + 1, (num_rows,), generator=generator)
    tokens[torch.arange(num_rows), length - 1] = END
    tokens[torch.arange(width) >= length[:, None]] = 0
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


def take_rows(batch: Any, rank: int, size: int) -> Any:
    """One data-parallel coordinate's contiguous share of the rows."""
    fields = {
        field.name: value.chunk(size)[rank]
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    if texts := getattr(batch, "texts", ()):
        num = len(texts) // size
        fields["texts"] = texts[rank * num : (rank + 1) * num]
    return dataclasses.replace(batch, **fields)


def full(tensor: Tensor) -> Tensor:
    """The whole of a distributed tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Trained:
    """A laid-out model, its objective, schedule and optimizers.

    Args:
        config: the model.
        loss: its loss.
        parallel: the layout; None: one process, though it may be a rank of a group.
        layout: instead, made already.
        num_microbatches: parts of the batch.
        precision: of the towers; the logits' scale is fp64 where they are.
        compile: blocks are compiled.
        lock: unlocked layers of the vision and the text tower, None where all train.
        batch_size: rows of a global batch.
        sources: names of those that are mixed.
    """

    def __init__(
        self,
        config: ClipConfig,
        loss: LossSection,
        *,
        parallel: ParallelConfig | None = None,
        layout: Layout | None = None,
        num_microbatches: int = 1,
        precision: Any = "fp64",
        compile: bool = False,
        lock: tuple[int | None, int | None] = (None, None),
        batch_size: int = 8,
        sources: Sequence[str] = (),
    ) -> None:
        alone = Layout(device=CPU, config=ParallelConfig())
        self.layout = layout or (alone if parallel is None else build_layout(parallel, CPU))
        self.model: Any = Clip(config).init_weights(0)
        if precision == "fp64":
            self.model.double()
        for tower, unlocked in zip((self.model.vision, self.model.text), lock, strict=True):
            if unlocked is not None:
                lock_tower(tower, unlocked_layers=unlocked)
        no_decay, hidden = no_decay_names(self.model), hidden_matrix_names(self.model)
        self.stages = parallelize(self.model, self.layout, precision=precision, compile=compile)
        self.objective: Any = contrastive_objective(
            self.model, loss, layout=self.layout, seed=3, sources=sources
        )
        for stage in self.stages:
            stage.set_criterion(self.objective.criterion)  # pyright: ignore[reportCallIssue]
        self.schedule = build_schedule(
            self.stages, self.layout, num_microbatches=num_microbatches, batch_size=batch_size
        )
        self.optimizers = build_optimizers(
            self.parameters().items(),
            OptimConfig(lr=1e-3),
            no_decay=no_decay,
            hidden_matrices=hidden,
            zero_group=self.layout.zero_group,
        )

    def batch(self, step: int) -> Any:
        """The global batch of a step."""
        return make_batch(step=step)

    def stage_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The towers' parameters held here, by name."""
        return {n: p for stage in self.stages for n, p in stage.named_parameters()}

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Every parameter held here, by name."""
        return self.stage_parameters() | self.objective.parameters()

    def backward(self, batch: Any) -> Tensor:
        """Loss of a global batch; gradients are accumulated."""
        rows = take_rows(batch, self.layout.rank("dp"), self.layout.size("dp"))
        return self.objective.step(self.schedule, rows)

    def gradients(self) -> dict[str, Tensor]:
        """Whole gradients of what is held here."""
        named = self.parameters().items()
        return {n: full(p.grad).clone() for n, p in named if p.grad is not None}

    def clip(self) -> float:
        """Clip the gradients -> their norm before."""
        return clip_gradients(
            self.stage_parameters().values(),
            MAX_NORM,
            pp_group=self.layout.group("pp"),
            shared=self.objective.parameters().values(),
        ).item()

    def train(self, *, num_steps: int) -> "Result":
        """Updates on batches 0, 1, ...; collective over the layout."""
        losses, norms, gradients = [], [], {}
        for step in range(num_steps):
            losses.append(self.backward(self.batch(step)).item())
            if step == 0:
                gradients = self.gradients()
            norms.append(self.clip())
            self.optimizers.step()
            self.objective.clamp()
            self.optimizers.zero_grad()
        weights = {n: full(p.detach()).clone() for n, p in self.parameters().items()}
        return Result(losses=losses, norms=norms, gradients=gradients, weights=weights)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a training gave; of a stage, what that stage holds."""

    losses: list[float]
    norms: list[float]
    """Before clipping."""
    gradients: dict[str, Tensor]
    """Of the first step, before clipping."""
    weights: dict[str, Tensor]
    """After the last update."""

    def check(self, want: "Result", name: str) -> None:
        """Compare with the single process."""
        assert min(want.norms) > MAX_NORM, "the test is to clip"
        assert self.losses == pytest.approx(want.losses, rel=TOLERANCE), f"{name}: loss"
        assert set(self.gradients) <= set(want.gradients) and len(self.gradients) > 10, name
        missing = (set(want.gradients) & set(self.weights)) - set(self.gradients)
        assert not missing, f"{name}: no gradient of {sorted(missing)}"
        _assert_near(self.gradients, want.gradients, f"{name}: gradient")
        assert self.norms == pytest.approx(want.norms, rel=TOLERANCE), f"{name}: norm"
        _assert_near(self.weights, want.weights, f"{name}: weight")


def _assert_near(got: dict[str, Tensor], want: dict[str, Tensor], what: str) -> None:
    error, tensor = worst(got, want)
    assert error <= TOLERANCE, f"{what} of {tensor} is off by {error:.1e}"


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
