"""What a run costs on rented GPUs, on paper: nothing here was measured.

Work is counted (FLOPs of the stages as they would run, bytes that ranks send); how fast a GPU does
it is the maker's figure times a share that is assumed. Every assumption is in `assumptions`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch._subclasses import FakeTensorMode

from mmtrain.errors import UsageError
from mmtrain.models.flops import clip_flops
from mmtrain.models.parameters import hidden_matrix_names
from mmtrain.nn.flops import FlopCount
from mmtrain.optim.muon import NUM_ITERATIONS
from mmtrain.parallel.accelerators import ACCELERATORS, Accelerator, peak_tflops
from mmtrain.parallel.recompute import apply_recompute
from mmtrain.plan.layout import Plan
from mmtrain.plan.stages import attention_of
from mmtrain.plan.workload import Workload

GPUS_A_MACHINE = 8
_BYTES_OF_AN_UPDATE = 28
"""AdamW in fp32: weight, gradient and two moments read, all but the gradient written."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What no count can tell."""

    efficiency: float = 0.35
    """Share of the peak that everything computed in a step reaches, small kernels included."""
    network_gb_per_s: float = 50.0
    """Of a GPU to other machines, one way: 400 Gb/s each."""
    link_share: float = 0.8
    """Of a link's figure that collectives reach."""
    price: float | None = None
    """Of a GPU an hour."""

    def lines(self, gpu: Accelerator, precision: str) -> Iterator[str]:
        """In words, for whoever reads the figures."""
        peak = peak_tflops(gpu, precision)
        yield (
            f"{gpu.name}: {peak:,.0f} TFLOP/s in {precision}, {gpu.memory_gb:,.0f} GB, "
            f"{gpu.link_gb_per_s:,.0f} GB/s within a machine of {GPUS_A_MACHINE} (its maker's)"
        )
        yield (
            f"{self.efficiency:.0%} of that peak for all that is computed; published CLIP training "
            "reaches 12 to 39 % MFU"
        )
        yield (
            f"{self.network_gb_per_s:,.0f} GB/s a GPU between machines; collectives reach "
            f"{self.link_share:.0%} of a link"
        )
        yield (
            "gradients and gathered weights travel while a step computes, the longer of the two "
            "counts; what tensor-parallel ranks and pipeline stages exchange is waited for"
        )
        yield "batches are there in time; checkpoints, evaluations and restarts are not counted"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A step and a run on paper."""

    model_flops: float
    """Of a step, all ranks together: the forward and the gradients that are asked for, three times
    the forward where everything trains."""
    hardware_flops: float
    """With recomputed blocks, second passes, the forwards of teachers and Muon's products."""
    computing: float
    """Seconds of a step, idle time of a pipeline included."""
    sending: float
    """Seconds of a step that data-parallel traffic takes beside it."""
    waiting: float
    """Seconds of a step for traffic that is waited for."""
    step: float
    samples_per_second: float
    mfu: float
    memory_gb: float
    """Of the fullest rank, 10^9 bytes, without what a framework takes."""
    hours: float | None
    """Of the whole run. None: its length is not known."""
    price: float | None


def find_gpu(name: str) -> Accelerator:
    """The GPU of a name.

    Raises:
        UsageError: it is not in the table.
    """
    for one in ACCELERATORS:
        if one.name == name.lower():
            return one
    known = ", ".join(one.name for one in ACCELERATORS)
    raise UsageError(f"--gpu {name} is unknown; use one of {known}")


def cost_of(
    workload: Workload,
    plan: Plan,
    gpu: Accelerator,
    assumed: Assumptions,
    *,
    num_samples: int | None,
) -> Cost:
    """The cost of a plan.

    Args:
        workload: what trains.
        plan: of it.
        gpu: of which every rank is one.
        assumed: the rest.
        num_samples: of the whole run. None: not known.

    Raises:
        UsageError: the table does not know the GPU's rate in train.precision.
    """
    peak = peak_tflops(gpu, workload.train.precision)
    if peak is None:
        raise UsageError(
            f'train.precision = "{workload.train.precision}": how fast {gpu.name} computes in it '
            "is not known here; use bf16, fp16 or fp32"
        )
    ranks, batch = plan.layout.world_size, workload.train.batch_size
    row = row_work(workload, plan)
    loss = sum(6.0 * batch**2 * one.width for one in workload.comparisons)
    model, hardware = row.model * batch + loss, row.hardware * batch + loss
    rate = 1e12 * peak * assumed.efficiency
    weights = max(one.num_trained for one in plan.memory)
    updating = _BYTES_OF_AN_UPDATE * weights / (1e9 * gpu.memory_gb_per_s)
    taught, teaching = _teaching(workload, gpu, plan)
    orthogonal = orthogonalizing(workload, plan)
    beside = teaching + orthogonal / (1e12 * gpu.bf16_tflops)  # Muon's products are bf16 on a GPU
    computing = hardware / ranks / rate / (1 - plan.idle) + beside / assumed.efficiency + updating
    sending, waiting = _traffic(plan, gpu, assumed)
    step = max(computing, sending) + waiting
    hours = None if num_samples is None else num_samples / batch * step / 3600
    return Cost(
        model_flops=model,
        hardware_flops=hardware + taught + orthogonal * ranks,
        computing=computing,
        sending=sending,
        waiting=waiting,
        step=step,
        samples_per_second=batch / step,
        mfu=model / step / (ranks * 1e12 * peak),
        memory_gb=max(one.total for one in plan.memory) / 1e9,
        hours=hours,
        price=None if hours is None or assumed.price is None else hours * ranks * assumed.price,
    )


@dataclass(frozen=True, kw_only=True)
class RowWork:
    """Products of a step on one image and what comes with it, texts at full length."""

    forward: float
    model: float
    """The forward and the gradients that are asked for: three forwards where everything trains."""
    hardware: float
    """With recomputed blocks and second passes."""


def row_work(workload: Workload, plan: Plan) -> RowWork:
    """Counted as the model would call them."""
    rows, layout = 2, plan.layout
    with attention_of("cuda"), FakeTensorMode():
        model = workload.build_model()
        stage = model.stage()
        workload.prepare(model, [stage], layout)
        apply_recompute(stage, layout.config.recompute, early_stop=layout.size("tp") == 1)
        size = workload.clip.vision.image_size
        num = rows * workload.images_per_row
        images = torch.zeros(num, 3, size, size, dtype=torch.uint8)
        given = workload.rows(rows)
        with FlopCount() as one:
            outputs = stage(images, **given)
            forward = one.total
            if outputs.requires_grad:
                torch.autograd.backward(outputs, torch.empty_like(outputs))
        model_flops = min(forward + one.gradients, 3 * forward)
        if all(weight.requires_grad for weight in model.parameters()):
            model_flops = 3 * forward  # as everyone counts it: the gradient of the pixels too
        frozen: tuple[str, ...] = getattr(stage, "frozen_outputs", tuple)()
        known = {f"{name}_BE": torch.zeros(rows, workload.clip.embed_dim) for name in frozen}
        with FlopCount() as second, torch.no_grad():
            if plan.passes > 1 and outputs.requires_grad:
                stage(images, **given, **known)
    return RowWork(
        forward=forward / rows,
        model=model_flops / rows,
        hardware=(model_flops + one.again + second.total) / rows,
    )


def _teaching(workload: Workload, gpu: Accelerator, plan: Plan) -> tuple[float, float]:
    """Products of the teachers in a step, and the share of it that their peak takes: each runs on
    every rank that has images, in a number format of its own."""
    flops = peak_seconds = 0.0
    for teacher in workload.teachers:
        one = clip_flops(teacher.config)
        mine = (one.image + one.text) * workload.train.batch_size / plan.layout.size("dp")
        flops += mine * plan.layout.size("dp") * plan.layout.size("tp")
        peak = gpu.bf16_tflops if teacher.autocasts else gpu.fp32_tflops
        peak_seconds += mine / (1e12 * peak)
    return flops, peak_seconds


def orthogonalizing(workload: Workload, plan: Plan) -> float:
    """Muon's products of an update on a rank: of the matrices that it owns, or of all where ranks
    hold them whole, or in pieces along two axes."""
    if workload.optim.kind != "muon":
        return 0.0
    with torch.device("meta"):
        model = workload.build_model()
    hidden, layout = hidden_matrix_names(model), plan.layout
    flops = 0.0
    for name, weight in model.named_parameters():
        if name in hidden and weight.requires_grad:
            small, large = sorted(weight.shape)
            flops += NUM_ITERATIONS * (4 * small**2 * large + 2 * small**3)
    if layout.config.dp_kind == "zero1":
        cuts = [layout.size("dp")]
    else:
        cuts = [layout.dp_shard if layout.is_sharded else 1, layout.size("tp")]
    owners = max(cuts) if min(cuts) == 1 or len(cuts) == 1 else 1
    return flops / layout.size("pp") / owners


def _traffic(plan: Plan, gpu: Accelerator, assumed: Assumptions) -> tuple[float, float]:
    """Seconds of a step beside computing, and those that are waited for."""
    beside, waited = 0.0, 0.0
    for one in plan.traffic:
        within = max(one.ranks) < GPUS_A_MACHINE
        link = gpu.link_gb_per_s if within else min(assumed.network_gb_per_s, gpu.link_gb_per_s)
        seconds = one.sent / (1e9 * link * assumed.link_share)
        if one.axis in ("tp", "pp"):
            waited += seconds
        else:
            beside += seconds
    return beside, waited
