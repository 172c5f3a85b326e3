"""One update, from a batch to the weights, given to the device as a whole.

Nothing in it is read by the host, so that the device has the next step before it is done with this
one: what is not fit to be taken is held back on the device, and judged later (loop.py).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmtrain.data.batch import BadSample, SampleBatch
from mmtrain.data.numbered import NumberedData
from mmtrain.nn.regions import region
from mmtrain.optim.clip import clip_gradients
from mmtrain.optim.config import OptimConfig
from mmtrain.train.flags import StepFlags, Wishes, own_flags
from mmtrain.train.pace import lr_factor_at
from mmtrain.train.state import RunState
from mmtrain.train.transfer import Transfer


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that the device has."""

    number: int
    """Updates done before it."""
    epoch: int
    num_rows: int
    """Usable rows of the global batch."""
    keys: tuple[str, ...]
    """This rank's samples."""
    bad: tuple[BadSample, ...]
    """Those that it could not use."""
    loss: Tensor
    grad_norm: Tensor
    """Before clipping."""
    loss_scale: Tensor | float
    """What the loss was multiplied by."""
    flags: StepFlags


def take_step_of_run(
    state: RunState,
    batch: SampleBatch,
    *,
    data: NumberedData[Any],
    optim: OptimConfig,
    total_steps: int,
    transfer: Transfer,
    wishes: Wishes,
) -> Step:
    """The coming step of a run: as its phase, its schedule and its data say.

    Args:
        state: of the run, between two steps.
        batch: the next of `data`.
        data: the run's.
        optim: the run's; it has the schedule of the learning rate.
        total_steps: updates of the whole run.
        transfer: as `take_step` takes it.
        wishes: likewise.
    """
    number, phases = state.step, data.phases
    state.enter(phases.at(number))
    return take_step(
        state,
        batch,
        transfer=transfer,
        lr_factor=lr_factor_at(number, phases=phases, total_steps=total_steps, config=optim),
        clip_norm=optim.clip_norm,
        num_rows=data.samples_in(number),
        wishes=wishes,
    )


def take_step(
    state: RunState,
    batch: SampleBatch,
    *,
    transfer: Transfer,
    lr_factor: float,
    clip_norm: float | None,
    num_rows: int,
    wishes: Wishes,
) -> Step:
    """Loss, gradients and update of a batch. Collective; waits for nothing.

    A loss or gradient that is not finite, on any rank, changes no weight, moment or average.

    Args:
        state: of the run; its step is counted whether the update is held back or not.
        batch: this rank's rows.
        transfer: brings them to the device.
        lr_factor: the learning rate's share of its peak.
        clip_norm: as `clip_gradients` takes it.
        num_rows: usable rows of the global batch.
        wishes: this rank's.
    """
    scale = state.loss_scale
    with region("copy to the device"):
        on_device = transfer(batch)
    state.optimizers.set_lr(lr_factor)
    factor = 1.0 if scale is None else scale.factor()
    loss = state.objective.step(state.schedule, on_device, loss_scale=factor)
    nothing = state.objective.nothing_learnt
    own = own_flags(loss=loss, wishes=wishes, nothing=nothing)
    with region("optimizer"):
        norm = clip_gradients(
            state.stage_parameters().values(),
            clip_norm,
            pp_group=state.layout.group("pp"),
            shared=state.objective.parameters().values(),
            loss_scale=factor,
            rider=own,
        )
    flags = StepFlags(
        loss=loss,
        grad_norm=norm,
        wishes=wishes,
        nothing=nothing,
        own=own,
        can_fall=None if scale is None else scale.can_fall,
    )
    if scale is not None:
        scale.update(skip=flags.skip, overflow=flags.overflow)
    with region("optimizer"):
        state.optimizers.step(skip=flags.skip)
        state.objective.clamp()
        if state.ema is not None:
            state.ema.update(state.step, skip=flags.skip)
        state.optimizers.zero_grad()
    step = Step(
        number=state.step,
        epoch=batch.epoch,
        num_rows=num_rows,
        keys=batch.keys,
        bad=batch.bad,
        loss=loss,
        grad_norm=norm,
        loss_scale=factor,
        flags=flags,
    )
    state.step += 1
    state.samples_seen += num_rows
    state.loss = loss
    return step
