"""Parallelism, applied to the models from outside by torch's own engine."""

from mmtrain.parallel.apply import gather_tensors, parallelize
from mmtrain.parallel.compile import compiled_code
from mmtrain.parallel.ddp import Replica, replicate
from mmtrain.parallel.mesh import Layout, ParallelConfig, build_layout, leave_ranks, pick_device
from mmtrain.parallel.pipeline import PipelineSchedule

__all__ = [
    "Layout",
    "ParallelConfig",
    "PipelineSchedule",
    "Replica",
    "build_layout",
    "compiled_code",
    "gather_tensors",
    "leave_ranks",
    "parallelize",
    "pick_device",
    "replicate",
]
