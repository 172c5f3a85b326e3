"""Parallelism, applied to the models from outside by torch's own engine.

The names are bound on first use: a recipe's keys are read without the engine.
"""

from typing import TYPE_CHECKING

from mmtrain.first_use import bound_on_first_use

if TYPE_CHECKING:
    from mmtrain.parallel.apply import gather_tensors, parallelize
    from mmtrain.parallel.mesh import Layout, ParallelConfig, build_layout, leave_ranks, pick_device
    from mmtrain.parallel.precision import Precision, autocast
    from mmtrain.parallel.recompute import RecomputeConfig
else:
    __getattr__, __dir__ = bound_on_first_use(
        __name__,
        {
            "Layout": "mmtrain.parallel.mesh",
            "ParallelConfig": "mmtrain.parallel.mesh",
            "Precision": "mmtrain.parallel.precision",
            "RecomputeConfig": "mmtrain.parallel.recompute",
            "autocast": "mmtrain.parallel.precision",
            "build_layout": "mmtrain.parallel.mesh",
            "gather_tensors": "mmtrain.parallel.apply",
            "leave_ranks": "mmtrain.parallel.mesh",
            "parallelize": "mmtrain.parallel.apply",
            "pick_device": "mmtrain.parallel.mesh",
        },
    )

__all__ = [
    "Layout",
    "ParallelConfig",
    "Precision",
    "RecomputeConfig",
    "autocast",
    "build_layout",
    "gather_tensors",
    "leave_ranks",
    "parallelize",
    "pick_device",
]
