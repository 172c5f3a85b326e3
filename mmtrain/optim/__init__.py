"""Optimizers, learning-rate schedules, clipping and weight averaging."""

from mmtrain.optim.clip import clip_gradients, global_norm
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.ema import Ema
from mmtrain.optim.loss_scale import LossScale, LossScaleConfig
from mmtrain.optim.muon import Muon
from mmtrain.optim.optimizer import Optimizers, build_optimizers
from mmtrain.optim.schedule import lr_factor

__all__ = [
    "Ema",
    "LossScale",
    "LossScaleConfig",
    "Muon",
    "OptimConfig",
    "Optimizers",
    "build_optimizers",
    "clip_gradients",
    "global_norm",
    "lr_factor",
]
