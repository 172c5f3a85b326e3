"""`mmtrain why`: what made a step of a run what it was: its layers' gradients and its samples."""

import math
import os
import re
import statistics
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mmtrain.build.again import Again, Stretch, again
from mmtrain.build.tasks import task_sections
from mmtrain.checkpoint.sealed_folder import CHECKPOINTS, steps_in
from mmtrain.commands.outputs import refuse_out
from mmtrain.data.batch import SampleBatch
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.labels import label_batch
from mmtrain.data.questions.batches import VqaBatch, VqaData
from mmtrain.errors import UsageError
from mmtrain.report.why_page import Sample, Usual, Why, write_why_page
from mmtrain.train.metrics import METRICS_FILE
from mmtrain.train.step import LocalSchedule

_BEFORE = 8
"""Steps before, whose median is what is usual."""
_SOON = 50
"""Steps that may be taken from the run's beginning, though a checkpoint is nearer."""
_LAYER = re.compile(r"(?:.*\bblocks\.\d+|[^.]+(?:\.[^.]+)?)(?=\.|$)")
"""The part of a parameter's name that its layer is called by."""


@dataclass(frozen=True, kw_only=True)
class _Look:
    """At a step, before it is taken."""

    loss: float
    norms: Mapping[str, float]
    """Of the gradients, by layer."""

    @property
    def norm(self) -> float:
        """Of all."""
        return math.hypot(*self.norms.values())


def why_command(
    *, run_dir: Path, step: int, overrides: list[str], rows: int, out: Path | None
) -> None:
    """Take a run up to a step, print what that is made of, and draw it.

    Raises:
        UsageError: the step cannot be taken again, or there are several ranks.
    """
    if out is not None:
        refuse_out(out, "--out", ".html")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("mmtrain why looks at a whole model: start it without torchrun")
    if not (run_dir / METRICS_FILE).is_file():
        raise UsageError(f"{run_dir} holds no {METRICS_FILE}, so it is no run; name a run's folder")
    stretch = Stretch(start=_start(run_dir, step), steps=(step,))
    with again(run_dir, stretch, overrides=overrides) as stand:
        why = look_into(stand, step)
    for line in why.told(rows):
        print(line)
    if out is not None:
        write_why_page(out, why, title=f"Step {step:,} of {run_dir.resolve().name}", num_rows=rows)
        print(f"wrote {out}")


def _start(run_dir: Path, step: int) -> int:
    """The newest place that leaves some steps to compare with; the newest of all, if none does."""
    kept = [one for one in steps_in(run_dir / CHECKPOINTS) if one < step]
    if not kept or step <= _SOON:
        kept.append(0)
    return max([one for one in kept if one < step - _BEFORE] or [min(kept)])


def look_into(stand: Again, step: int) -> Why:
    """Take the steps up to one, and look at that and at those just before."""
    run, looks, parts = stand.run, deque[_Look](maxlen=_BEFORE + 1), list[float]()
    if isinstance(run.data, ImageTextData):
        run.data.keeps_texts = True

    def look(batch: SampleBatch) -> None:
        if run.state.step >= step - 1 - _BEFORE:
            looks.append(_look(stand, batch))
        if run.state.step == step - 1:
            parts.extend(_parts(stand, batch))

    *_, (batch, _) = stand.take(step, look=look)
    *before, own = looks
    labelled = label_batch(
        batch,
        run.data.tokenizer,
        image_tokens=task_sections(run.recipe).image_tokens,
        answers=run.data.answers if isinstance(run.data, VqaData) else (),
    )
    start = "its beginning" if stand.checkpoint is None else stand.checkpoint.name
    return Why(
        step=step,
        start=f"{run.folder}: again from {start} on one process",
        notes=stand.told,
        num_before=len(before),
        loss=Usual(value=own.loss, usual=_median([one.loss for one in before])),
        norm=Usual(value=own.norm, usual=_median([one.norm for one in before])),
        layers={
            name: Usual(value=norm, usual=_median([one.norms[name] for one in before]))
            for name, norm in own.norms.items()
        },
        samples=[
            Sample(row=row, part=part) for row, part in zip(labelled.rows, parts, strict=True)
        ],
        images_NCHW=batch.images_BCHW,
        bad=tuple(f"{bad}: {bad.reason}" for bad in batch.bad),
    )


def _look(stand: Again, batch: SampleBatch) -> _Look:
    """Loss and gradients of a batch with the weights as they are; they stay."""
    state = stand.run.state
    state.enter(stand.run.data.phases.at(state.step))
    scale = 1.0 if state.loss_scale is None else state.loss_scale.factor()
    on_device = batch.to(state.layout.device)
    loss = state.objective.step(state.schedule, on_device, loss_scale=scale)
    squares: dict[str, float] = defaultdict(float)
    named = {**state.stage_parameters(), **state.objective.parameters()}
    for name, parameter in named.items():
        if parameter.grad is not None:
            squares[_layer(name)] += parameter.grad.double().square().sum().item()
    state.optimizers.zero_grad()
    return _Look(
        loss=loss.item(),
        norms={name: math.sqrt(square) / float(scale) for name, square in squares.items()},
    )


def _layer(name: str) -> str:
    found = _LAYER.match(name)
    return name if found is None else found[0].replace("transformer.blocks.", "block ")


def _parts(stand: Again, batch: SampleBatch) -> list[float]:
    """Of the loss, of each row that counts."""
    state = stand.run.state
    assert isinstance(state.schedule, LocalSchedule), "on one process"
    on_device = batch.to(state.layout.device)
    parts_R: Tensor = state.objective.row_parts(state.schedule, on_device).cpu()
    valid_R = batch.valid_Q if isinstance(batch, VqaBatch) else batch.valid_B
    return parts_R[valid_R.cpu()].tolist()


def _median(values: list[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else None
