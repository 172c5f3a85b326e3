"""The learning rate of each step of a run, phases and all."""

from dataclasses import replace

from mmtrain.data.phases import Phases
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.schedule import lr_factor


def lr_factor_at(step: int, *, phases: Phases, total_steps: int, config: OptimConfig) -> float:
    """Learning rate of a step as a share of `optim.lr`.

    Where batches change their size the schedule counts their rows: a step of 512 goes as far in it
    as two of 256. With batches of one size it counts steps.

    Args:
        step: updates done before this one.
        phases: of the run.
        total_steps: updates of the whole run.
        config: the section [optim]; its warmup_steps are steps.
    """
    start, stop = phases.clock(step), phases.clock(step + 1)
    if (warmup := config.warmup_steps) is not None:
        config = replace(config, warmup_steps=phases.clock(warmup))
    total = phases.clock(total_steps)
    factor = lr_factor(start, total_steps=total, config=config, advance=stop - start)
    return phases.at(step).lr_factor * factor
