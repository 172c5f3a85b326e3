"""Optimizers, learning-rate schedules, clipping and weight averaging.

The names are bound on first use: a recipe's keys are read without torch's distributed tensors.
"""

from typing import TYPE_CHECKING

from mmtrain.first_use import bound_on_first_use

if TYPE_CHECKING:
    from mmtrain.optim.clip import clip_gradients, global_norm
    from mmtrain.optim.config import OptimConfig
    from mmtrain.optim.ema import Ema
    from mmtrain.optim.loss_scale import LossScale
    from mmtrain.optim.optimizer import Optimizers, build_optimizers
    from mmtrain.optim.schedule import lr_factor, warmup_steps
else:
    __getattr__, __dir__ = bound_on_first_use(
        __name__,
        {
            "Ema": "mmtrain.optim.ema",
            "LossScale": "mmtrain.optim.loss_scale",
            "OptimConfig": "mmtrain.optim.config",
            "Optimizers": "mmtrain.optim.optimizer",
            "build_optimizers": "mmtrain.optim.optimizer",
            "clip_gradients": "mmtrain.optim.clip",
            "global_norm": "mmtrain.optim.clip",
            "lr_factor": "mmtrain.optim.schedule",
            "warmup_steps": "mmtrain.optim.schedule",
        },
    )

__all__ = [
    "Ema",
    "LossScale",
    "OptimConfig",
    "Optimizers",
    "build_optimizers",
    "clip_gradients",
    "global_norm",
    "lr_factor",
    "warmup_steps",
]
