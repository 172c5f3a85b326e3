"""Training: the step as a schedule, and the loop of `mmtrain train` around it.

The names are bound on first use: a recipe's keys are read without the engine.
"""

from typing import TYPE_CHECKING

from mmtrain.first_use import bound_on_first_use

if TYPE_CHECKING:
    from mmtrain.train.step import LocalSchedule, Schedule, build_schedule
else:
    __getattr__, __dir__ = bound_on_first_use(
        __name__,
        {
            "LocalSchedule": "mmtrain.train.step",
            "Schedule": "mmtrain.train.step",
            "build_schedule": "mmtrain.train.step",
        },
    )

__all__ = [
    "LocalSchedule",
    "Schedule",
    "build_schedule",
]
