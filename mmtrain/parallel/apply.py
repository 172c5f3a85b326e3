"""How a model is laid out over the mesh: one ordered list."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmtrain.errors import UsageError
from mmtrain.models.model import Model, Stage
from mmtrain.parallel.compile import apply_compile
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.precision import Precision, apply_precision, check_precision, laid_out
from mmtrain.parallel.recompute import apply_recompute
from mmtrain.parallel.shard import apply_fsdp
from mmtrain.parallel.slices import slice_stages
from mmtrain.parallel.tensor_plans import apply_tensor_parallel


def parallelize(
    model: Model,
    layout: Layout,
    *,
    precision: Precision = "fp32",
    compile: bool = False,
) -> list[Stage]:
    """The stages of `model` that this rank holds, laid out over the mesh.

    The order is fixed: slice -> format -> tensor and sequence parallel -> compile, recompute ->
    FSDP. What goes around forwards has an order of its own (nn/seams.py). The logits' scale and
    bias stay outside.

    Raises:
        UsageError: a degree of parallelism does not fit the model.
    """
    if not isinstance(compile, bool):  # "auto", of a recipe, knows how long a run is
        raise UsageError(f"compile = {compile!r} must be True or False")
    if compile and layout.size("tp") > 1 and not layout.config.sequence:
        raise UsageError(
            f"train.compile = true with parallel.tp = {layout.size('tp')} needs "
            "parallel.sequence = true: torch's compiler does not get through the other form"
        )
    check_precision(layout, precision)
    precision = laid_out(layout, precision)
    whole = model.stage()
    stages = slice_stages(whole, layout) if layout.size("pp") > 1 else [whole]
    for stage in stages:
        apply_precision(stage, precision, layout.device)
        if not layout.config.cpu_offload:  # FSDP fetches its blocks one by one: all may not fit
            stage.to(layout.device)
        if layout.mesh is not None and layout.size("tp") > 1:
            apply_tensor_parallel(stage, layout.mesh["tp"], sequence=layout.config.sequence)
        if compile:
            apply_compile(stage)
        apply_recompute(stage, layout.config.recompute, early_stop=layout.size("tp") == 1)
        if layout.is_sharded:
            apply_fsdp(stage, layout, precision)
    return stages


@torch.no_grad()
def gather_tensors(tensors: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Whole tensors of all pipeline stages on every rank, for evaluation and export.

    Args:
        tensors: what this rank holds, by name: shards are gathered, stages are exchanged.
        layout: the mesh; every rank of it must call.
    """
    whole = {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in tensors.items()
    }
    group = layout.group("pp")
    if group is None:
        return whole
    gathered: dict[str, Tensor] = {}
    for rank in range(layout.size("pp")):
        source = dist.get_global_rank(group, rank)
        outline = [{n: (tuple(v.shape), v.dtype) for n, v in whole.items()}]
        dist.broadcast_object_list(outline, source, group=group, device=layout.device)
        for name, (shape, dtype) in outline[0].items():
            mine = rank == layout.rank("pp")
            value = whole[name] if mine else torch.empty(shape, dtype=dtype, device=layout.device)
            dist.broadcast(value, source, group=group)
            gathered[name] = value
    return gathered
