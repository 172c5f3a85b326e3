"""Peak memory and time of the contrastive losses: all logits at once against our blocks.

Every measurement is one forward and backward on fp32 CPU features in a fresh process, which
resets the kernel's high-water mark of its memory first (Linux). Implementations alternate within a
batch size, so that a noisy neighbour hits all of them. Run `python benchmarks/loss_memory.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import describe_machine, kernel_mib, reset_peak_memory
from torch import Tensor

from mmtrain.losses import clip_loss, siglip_loss

SCALE, BIAS = 14.3, -10.0
# Matrices of B x B fp32 that the naive forms hold at their peak; only used to refuse in time.
NAIVE_MATRICES = 4.2


def clip_two_products(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """As open_clip's ClipLoss computes it: the logits and, by a second product, their transpose."""
    own = torch.arange(len(image))
    per_image, per_text = scale * image @ text.T, scale * text @ image.T
    return (F.cross_entropy(per_image, own) + F.cross_entropy(per_text, own)) / 2


def clip_one_product(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The textbook form: one product, used in both directions."""
    own = torch.arange(len(image))
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def siglip_one_product(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """As open_clip's SigLipLoss computes it in one process."""
    signs = 2 * torch.eye(len(image)) - torch.ones(len(image), len(image))
    return -F.logsigmoid(signs * (scale * image @ text.T + bias)).sum() / len(image)


def clip_blocks(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Ours."""
    return clip_loss(image, text, logit_scale=scale)


def siglip_blocks(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Ours."""
    return siglip_loss(image, text, logit_scale=scale, logit_bias=bias)


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# The first is what the others are compared with, the last is ours.
LOSSES: dict[str, dict[str, Loss]] = {
    "clip": {
        "open_clip's formula": clip_two_products,
        "one product": clip_one_product,
        "mmtrain": clip_blocks,
    },
    "siglip": {"open_clip's formula": siglip_one_product, "mmtrain": siglip_blocks},
}


def measure(loss: Loss, batch: int, dim: int) -> dict[str, float]:
    """Seconds and MiB above the features of one forward and backward, in this process."""
    # If memory runs out all the same, this process is the one to go.
    Path("/proc/self/oom_score_adj").write_text("1000")
    torch.manual_seed(0)

    def step(num_rows: int) -> tuple[float, float]:
        image, text = (
            F.normalize(torch.randn(num_rows, dim), dim=-1).requires_grad_() for _ in range(2)
        )
        scale = torch.tensor(SCALE, requires_grad=True)
        bias = torch.tensor(BIAS, requires_grad=True)
        reset_peak_memory()
        before, start = kernel_mib("/proc/self/status", "VmRSS"), time.perf_counter()
        loss(image, text, scale, bias).backward()
        seconds = time.perf_counter() - start
        return seconds, kernel_mib("/proc/self/status", "VmHWM") - before

    step(256)  # starts the threads and loads the kernels
    seconds, mib = step(batch)
    return {"seconds": seconds, "mib": mib}


def measure_apart(arguments: argparse.Namespace, name: str, batch: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--loss", arguments.loss, "--dim", str(arguments.dim)]
    command += ["--threads", str(arguments.threads), "--point", name, str(batch)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def naive_fits(batch: int, limit: int) -> bool:
    """Whether a naive form is wanted at this batch and the machine has the memory."""
    needed = NAIVE_MATRICES * 4 * batch**2 / 2**20
    return batch <= limit and needed < 0.95 * kernel_mib("/proc/meminfo", "MemAvailable")


def compare(arguments: argparse.Namespace) -> list[str]:
    """The table's rows, printed as they come."""
    rows = []
    for batch in arguments.batch:
        points: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.repeats):
            for name in LOSSES[arguments.loss]:
                if name == "mmtrain" or naive_fits(batch, arguments.naive_up_to):
                    points.setdefault(name, []).append(measure_apart(arguments, name, batch))
        peak = {name: max(p["mib"] for p in found) for name, found in points.items()}
        seconds = {
            name: statistics.median(p["seconds"] for p in found) for name, found in points.items()
        }
        for name in LOSSES[arguments.loss]:
            if name not in points:
                row = f"| {batch:,} | {name} | not run | | | |"
            else:
                share, speed = peak["mmtrain"] / peak[name], seconds[name] / seconds["mmtrain"]
                row = f"| {batch:,} | {name} | {peak[name]:,.0f} | {seconds[name]:.2f} | "
                row += "| |" if name == "mmtrain" else f"{share:.1%} | {speed:.2f}x |"
            rows.append(row)
            print(row, flush=True)
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loss", choices=LOSSES, default="clip")
    parser.add_argument("--batch", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--naive-up-to", type=int, default=8192, help="largest naive batch")
    parser.add_argument("--dim", type=int, default=512, help="features per row")
    parser.add_argument("--repeats", type=int, default=2, help="processes per measurement")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="markdown file to append the table to")
    parser.add_argument("--point", nargs=2, metavar=("NAME", "BATCH"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.point:
        name, batch = arguments.point
        point = measure(LOSSES[arguments.loss][name], int(batch), arguments.dim)
        print(json.dumps(point))
        return
    head = [
        f"## {arguments.loss}, E = {arguments.dim}, fp32, {arguments.threads} threads",
        "",
        f"{describe_machine()}. Peak: memory above the features, gradients included (largest of "
        f"{arguments.repeats}); seconds: forward + backward (median of {arguments.repeats}).",
        "",
        "| B | form | peak MiB | seconds | our peak / its | its seconds / ours |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(head), flush=True)
    rows = compare(arguments)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("a") as file:
            file.write("\n".join([*head, *rows, "", ""]))


if __name__ == "__main__":
    main()
