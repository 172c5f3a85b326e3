"""The learning rate as a pure function of the step."""

import math

from mmtrain.errors import UsageError
from mmtrain.optim.config import OptimConfig


def warmup_steps(config: OptimConfig, *, total_steps: int) -> int:
    """Steps of linear warm-up; as many as the section says, also where the run has fewer."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    fraction = 0.1 if config.warmup_fraction is None else config.warmup_fraction
    return round(fraction * total_steps)


def lr_factor(step: int, *, total_steps: int, config: OptimConfig, advance: int = 1) -> float:
    """Learning rate of a step as a share of its peak.

    Warm-up is (step + 1) / warmup; what follows counts from its end, as in open_clip: cosine is
    min + (1 - min) * (1 + cos(pi * progress)) / 2; wsd (Hu et al. 2024, arXiv:2404.06395) stays at
    1 and falls linearly to min over the last decay_fraction of the run.

    Args:
        step: number of updates done before this one, from 0; that of the whole run, which torch's
            schedulers ask for behind the last one, gives where the schedule ends.
        total_steps: updates of the whole run; the schedule ends there.
        advance: how many of them this one counts as, where they count samples.

    Raises:
        UsageError: the step is beyond the run.
    """
    if not 0 <= step <= total_steps:
        raise UsageError(f"step = {step} must be within 0 and total_steps = {total_steps}")
    warmup = warmup_steps(config, total_steps=total_steps)
    if step < warmup or step == warmup == total_steps:
        return min(1.0, (step + advance) / max(1, warmup))
    floor = config.min_lr_fraction
    if config.schedule == "cosine":
        progress = (step - warmup) / (total_steps - warmup)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "wsd":
        decay = max(1, round(config.decay_fraction * total_steps))
        decay_start = max(warmup, total_steps - decay)
        progress = max(0, step - decay_start) / (total_steps - decay_start)
        return floor + (1 - floor) * (1 - progress)
    return 1.0
