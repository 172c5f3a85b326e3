"""Every axis of the mesh on two ranks of this machine, against one process with two threads.

All layouts take turns in one run: samples per second as a share of the single process's, the bytes
that rank 0 hands to the network in a step, against what `mmtrain plan` says, and how much of its
collectives' time rank 0 computes meanwhile.

    python benchmarks/parallel.py --out benchmarks/results/parallel_cpu.md
"""

import argparse
import dataclasses
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from machine import describe_machine
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmtrain.build.tasks import build_workload
from mmtrain.data.batch import ImageTextBatch
from mmtrain.loading.config import ModelConfig
from mmtrain.models import Clip, ClipConfig, TextConfig, VisionConfig
from mmtrain.models.parameters import hidden_matrix_names, no_decay_names
from mmtrain.nn import TransformerConfig
from mmtrain.optim.clip import clip_gradients
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.optimizer import build_optimizers
from mmtrain.parallel.apply import parallelize
from mmtrain.parallel.mesh import Layout, ParallelConfig, build_layout, leave_ranks
from mmtrain.plan.layout import plan_layout
from mmtrain.recipe import TrainRecipe, load_recipe
from mmtrain.tasks.config import LossSection
from mmtrain.tasks.contrastive import contrastive_objective
from mmtrain.train.step import build_schedule

CPU = torch.device("cpu")
RECIPE = Path(__file__).parents[1] / "configs/debug_clip.toml"
LAYOUTS: dict[str, tuple[ParallelConfig, int]] = {
    "dp_shard = 2, ZeRO-3": (ParallelConfig(), 1),
    "dp_shard = 2, ZeRO-2": (ParallelConfig(reshard_after_forward=False), 1),
    "dp_shard = 2, 2 microbatches": (ParallelConfig(), 2),
    "dp_replicate = 2": (ParallelConfig(dp_replicate=2), 1),
    "DDP": (ParallelConfig(dp_kind="ddp"), 1),
    "DDP, 2 microbatches": (ParallelConfig(dp_kind="ddp"), 2),
    "ZeRO-1": (ParallelConfig(dp_kind="zero1"), 1),
    "tp = 2, sequence": (ParallelConfig(tp=2), 1),
    "tp = 2": (ParallelConfig(tp=2, sequence=False), 1),
    "pp = 2, 1F1B, 8 microbatches": (ParallelConfig(pp=2), 8),
    "pp = 2, Interleaved1F1B, 8 microbatches": (
        ParallelConfig(pp=2, schedule="Interleaved1F1B"),
        8,
    ),
}
"""Name -> layout and microbatches."""


def model_config() -> ClipConfig:
    """8 + 8 MiB of blocks: 65 image tokens, 32 text tokens."""
    core = TransformerConfig(dim=256, num_layers=4, num_heads=4)
    return ClipConfig(
        vision=VisionConfig(image_size=64, patch_size=8, transformer=core),
        text=TextConfig(
            transformer=dataclasses.replace(core, mask="causal"),
            vocab_size=512,
            context_length=32,
            end_token_id=511,
        ),
        embed_dim=128,
    )


def recipe_of(parallel: ParallelConfig, microbatches: int, batch_size: int) -> TrainRecipe:
    """What `plan` is asked about."""
    recipe, config = load_recipe(RECIPE), model_config()
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    train = dataclasses.replace(
        recipe.train,
        batch_size=batch_size,
        microbatches=microbatches,
        precision="fp32",
        device="cpu",
    )
    return dataclasses.replace(recipe, model=ModelConfig(**fields), parallel=parallel, train=train)


def make_batch(num_rows: int) -> ImageTextBatch:
    """Random pixels, random texts at full length."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_rows, 3, 64, 64), generator=generator).to(torch.uint8)
    tokens = torch.randint(1, 511, (num_rows, 32), generator=generator)
    tokens[:, -1] = 511
    return ImageTextBatch(
        images_BCHW=images.contiguous(memory_format=torch.channels_last),
        tokens_BT=tokens,
        text_length_B=torch.full((num_rows,), 32),
        label_B=torch.full((num_rows,), -1),
        position_B=torch.arange(num_rows),
        valid_B=torch.ones(num_rows, dtype=torch.bool),
        epoch=0,
        keys=tuple(map(str, range(num_rows))),
    )


class SentBytes(TorchDispatchMode):
    """Counts what this rank sends, every collective as a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind is DTensor for kind in types):
            return NotImplemented  # its own operations come here again, on local tensors
        if func.namespace in ("c10d", "_c10d_functional"):
            self.total += _sent(func._opname, args)
        return func(*args, **(kwargs or {}))


def overlap(side: "Side") -> float | None:
    """The share of a step's collectives' time in which rank 0 computes, by torch's profiler.

    None for a pipeline, whose transfers wait for the other side's work.
    """
    if side.layout.size("pp") > 1:
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        side.step()
    sending, computing = [], []
    for event in profile.events():
        span = (event.time_range.start, event.time_range.end)
        if event.name in ("gloo:all_reduce", "gloo:all_gather", "gloo:broadcast"):
            sending.append(span)
        elif event.name.startswith("aten::"):
            computing.append(span)
    sending, computing = _merged(sending), _merged(computing)
    total = sum(end - start for start, end in sending)
    both = sum(
        max(0.0, min(end, other_end) - max(start, other_start))
        for start, end in sending
        for other_start, other_end in computing
    )
    return both / total


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same moments without overlaps."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _sent(name: str, args: Any) -> int:
    """Bytes that one of two ranks sends: half of a whole, or all of a share."""
    tensors = [t for a in args for t in (a if isinstance(a, list) else [a])]
    sizes = [t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor)]
    if name in ("send", "all_reduce", "all_reduce_", "allreduce_"):
        return sum(sizes)
    if name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
        return sizes[0] // 2 if name == "reduce_scatter_tensor" else sizes[0]
    if name == "_allgather_base_":
        return sizes[1]
    if name == "_reduce_scatter_base_":
        return sizes[1] // 2
    if name == "broadcast_":
        return sum(sizes) if args[2] == 0 else 0  # from rank 0, or to it
    if name in ("recv_", "wait_tensor", "_wrap_tensor_autograd", "barrier"):
        return 0
    raise AssertionError(f"{name} is not counted")


class Side:
    """One layout with all that a step needs."""

    def __init__(self, layout: Layout, microbatches: int, batch_size: int) -> None:
        model = Clip(model_config()).init_weights(0)
        no_decay, hidden = no_decay_names(model), hidden_matrix_names(model)
        self.layout = layout
        self.stages: list[nn.Module] = parallelize(model, layout)
        self.objective = contrastive_objective(model, LossSection(), layout=layout, seed=0)
        self.schedule = build_schedule(
            self.stages, layout, num_microbatches=microbatches, batch_size=batch_size
        )
        named = {n: p for stage in self.stages for n, p in stage.named_parameters()}
        self.parameters = list(named.values())
        named |= self.objective.parameters()
        self.optimizers = build_optimizers(
            named.items(),
            OptimConfig(lr=1e-4),
            no_decay=no_decay,
            hidden_matrices=hidden,
            zero_group=layout.zero_group,
        )
        rows, rank = batch_size // layout.size("dp"), layout.rank("dp")
        batch = make_batch(batch_size)
        self.batch = dataclasses.replace(
            batch,
            **{
                field.name: value[rank * rows : (rank + 1) * rows]
                for field in dataclasses.fields(batch)
                if isinstance(value := getattr(batch, field.name), torch.Tensor)
            },
        )

    def step(self) -> float:
        """Forward, loss, backward, clipping, AdamW -> seconds."""
        start = time.perf_counter()
        self.objective.step(self.schedule, self.batch)
        clip_gradients(
            self.parameters,
            1.0,
            pp_group=self.layout.group("pp"),
            shared=self.objective.parameters().values(),
        )
        self.optimizers.step()
        self.optimizers.zero_grad()
        return time.perf_counter() - start


def run(rank: int, port: int, rounds: int, batch_size: int, out: Path | None) -> None:
    """One of the two ranks."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    sides = {
        name: Side(build_layout(parallel, CPU), microbatches, batch_size)
        for name, (parallel, microbatches) in LAYOUTS.items()
    }
    alone = Side(Layout(device=CPU, config=ParallelConfig()), 1, batch_size) if rank == 0 else None
    sent: dict[str, int] = {}
    for name, side in sides.items():
        side.step()  # a pipeline tries its stages out
        with SentBytes() as counter:
            side.step()
        sent[name] = counter.total
    ratios: dict[str, list[float]] = {name: [] for name in sides}
    overlaps: dict[str, list[float | None]] = {name: [] for name in sides}
    speeds: list[float] = []
    for _ in range(rounds):
        base = 0.0
        dist.barrier()
        if alone is not None:
            torch.set_num_threads(2)
            alone.step()
            base = min(alone.step() for _ in range(2))
            speeds.append(batch_size / base)
            torch.set_num_threads(1)
        for name, side in sides.items():
            dist.barrier()
            side.step()
            ratios[name].append(base / min(side.step() for _ in range(2)))
            overlaps[name].append(overlap(side))
    if rank == 0:
        _print(ratios, overlaps, speeds, sent, batch_size, out)
    leave_ranks()


def _print(
    ratios: dict[str, list[float]],
    overlaps: dict[str, list[float | None]],
    speeds: list[float],
    sent: dict[str, int],
    batch_size: int,
    out: Path | None,
) -> None:
    lines = [
        "# Two ranks in every layout",
        "",
        f"`python benchmarks/parallel.py`, {describe_machine()}. A CLIP of width 256, 4 + 4 "
        f"layers, batch {batch_size}, fp32. 1 rank with 2 threads: "
        f"{statistics.median(speeds):.1f} samples/s ({min(speeds):.1f} to {max(speeds):.1f} over "
        "the rounds). Sent: by rank 0 in a step, every collective as a ring. "
        "Overlapped: of the time that collectives take on rank 0, the share in which it computes.",
        "",
        "| layout | samples/s, 1 rank x 2 threads = 1 | sent, MiB | plan, MiB | sent / plan "
        "| overlapped |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in ratios.items():
        parallel, microbatches = LAYOUTS[name]
        plan = plan_layout(
            build_workload(recipe_of(parallel, microbatches, batch_size)), world_size=2
        )
        want = sum(one.sent for one in plan.traffic)
        middle, low, high = statistics.median(found), min(found), max(found)
        shares = [one for one in overlaps[name] if one is not None]
        overlapped = f"{statistics.median(shares):.0%}" if shares else "-"
        lines.append(
            f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {sent[name] / 2**20:.2f} | "
            f"{want / 2**20:.2f} | {sent[name] / want:.3f} | {overlapped} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


def main() -> None:
    """Start both ranks."""
    parser = argparse.ArgumentParser(prog="parallel", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of all layouts (5)")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of the global batch (32)")
    parser.add_argument("--port", type=int, default=29517, help="where the ranks meet (29517)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the table there (.md)")
    arguments = parser.parse_args()
    words = (arguments.port, arguments.rounds, arguments.batch_size, arguments.out)
    torch.multiprocessing.spawn(run, args=words, nprocs=2)  # pyright: ignore[reportPrivateImportUsage]


if __name__ == "__main__":
    main()
