"""Host time of one optimizer step over a real model's number of tensors, ours against torch's.

What a GPU waits for where the host is slower than its kernels. The model has a ViT-L/14's tensors
with matrices of 16 x 16, and a fake process group of 8, so that neither arithmetic nor sending
counts. torchtitan gives FSDP's DTensors to torch's fused AdamW; ours takes the local shards. Torch
has no Muon for sharded matrices: on plain ones it is the bound of what can be had.
Prints milliseconds of processor time, by turns in one run.

    python benchmarks/optimizer_host.py --out benchmarks/results/optimizer_host_cpu.md
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from machine import describe_machine
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from mmtrain.models import Clip
from mmtrain.models.named import named_model
from mmtrain.models.parameters import parameter_names
from mmtrain.optim.clip import clip_gradients
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.ema import Ema
from mmtrain.optim.optimizer import build_optimizers
from mmtrain.parallel.apply import parallelize
from mmtrain.parallel.mesh import ParallelConfig, build_layout

RANKS, DIM = 8, 16
Jobs = dict[str, Callable[[], object]]


def build(name: str) -> Clip:
    """The named model's tensors, tiny."""
    config = named_model(name)
    small = {"dim": DIM, "num_heads": 2, "ff_dim": DIM}
    vision = replace(config.vision, transformer=replace(config.vision.transformer, **small))
    text = replace(config.text, transformer=replace(config.text.transformer, **small))
    text = replace(text, vocab_size=64, end_token_id=63)
    return Clip(replace(config, vision=vision, text=text, embed_dim=DIM)).init_weights(0)


def jobs(model: Clip, kind: str) -> Jobs:
    """What is timed, over the parameters as a layout leaves them."""
    names = parameter_names(model)
    if kind == "plain":
        parameters: Mapping[str, nn.Parameter] = dict(model.named_parameters())
    else:
        layout = build_layout(ParallelConfig(), torch.device("cpu"))
        stages = parallelize(model, layout)
        parameters = {n: p for stage in stages for n, p in stage.named_parameters()}
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    matrices = [p for n, p in parameters.items() if n in names.hidden_matrices]
    torch_adamw = torch.optim.AdamW(list(parameters.values()), lr=0.0, fused=True)
    found: Jobs = {"torch AdamW": torch_adamw.step}
    for optimizer in ("adamw", "muon"):
        ours = build_optimizers(
            parameters.items(),
            OptimConfig(kind=optimizer),
            no_decay=names.no_decay,
            hidden_matrices=names.hidden_matrices,
        )
        label = "AdamW" if optimizer == "adamw" else f"Muon ({len(matrices)} matrices) and AdamW"
        found[label] = ours.step
    found["clipping"] = lambda: clip_gradients(parameters.values(), 1.0)
    average = Ema(parameters.items(), decay=0.99)
    found["average"] = lambda: average.update(10)
    return found


def measure(ways: Jobs, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, by turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 2):
        for name, job in ways.items():
            began = time.process_time()
            job()
            if turn > 1:  # the first two warm up
                times[name].append(1e3 * (time.process_time() - began))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-L-14")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(RANKS), "RANK": "0"}
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    kinds = ("plain", "FSDP")
    ways = {
        f"{kind}: {name}": job
        for kind in kinds
        for name, job in jobs(build(arguments.model), kind).items()
    }
    times = measure(ways, arguments.rounds)
    num_tensors = len(dict(build(arguments.model).named_parameters()))
    lines = [
        f"# Host time of an optimizer step, {arguments.model}",
        "",
        f"{describe_machine()}; {num_tensors} tensors of tiny size, a fake group of {RANKS} ranks; "
        f"milliseconds of processor time, median of {arguments.rounds} rounds by turns (smallest "
        "to largest).",
        "",
        "| | plain | FSDP |",
        "|---|---|---|",
    ]
    for name in dict.fromkeys(way.split(": ")[1] for way in ways):
        cells = (times[f"{kind}: {name}"] for kind in kinds)
        told = [f"{statistics.median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f})" for ms in cells]
        lines.append(f"| {name} | {' | '.join(told)} |")
    print("\n".join(lines))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join([*lines, ""]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
