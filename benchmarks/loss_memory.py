"""Peak memory and time of the contrastive losses: all logits at once against our blocks.

Every measurement is one forward and backward on fp32 features in a fresh process, which resets the
high-water mark of its memory first (of the kernel on a CPU, under Linux). Implementations alternate
within a batch size, so that a noisy neighbour hits all of them. On a GPU siglip-kernel and memeff
are opponents too, where they are installed: both multiply in bf16, ours in fp32.

    python benchmarks/loss_memory.py
    python benchmarks/loss_memory.py --device cuda --loss siglip --dim 768 --batch 16384 65536
"""

import argparse
import importlib.util
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
from mmtrain.nn.products import fast_products

SCALE, BIAS = 14.3, -10.0
# Matrices of B x B fp32 that the naive forms hold at their peak; only used to refuse in time.
NAIVE_MATRICES = 4.2


def clip_two_products(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """As open_clip's ClipLoss computes it: the logits and, by a second product, their transpose."""
    own = torch.arange(len(image), device=image.device)
    per_image, per_text = scale * image @ text.T, scale * text @ image.T
    return (F.cross_entropy(per_image, own) + F.cross_entropy(per_text, own)) / 2


def clip_one_product(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The textbook form: one product, used in both directions."""
    own = torch.arange(len(image), device=image.device)
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def siglip_one_product(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """As open_clip's SigLipLoss computes it in one process."""
    signs = 2 * torch.eye(len(image), device=image.device) - 1
    return -F.logsigmoid(signs * (scale * image @ text.T + bias)).sum() / len(image)


def clip_blocks(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Ours."""
    return clip_loss(image, text, logit_scale=scale)


def siglip_blocks(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Ours."""
    return siglip_loss(image, text, logit_scale=scale, logit_bias=bias)


def siglip_kernel(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """PyPI's siglip-kernel, which takes bf16 and the multiplier's logarithm."""
    from siglip_kernel import fused_siglip_loss

    return fused_siglip_loss(image.bfloat16(), text.bfloat16(), scale.log(), bias)


def memeff(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """PyPI's memeff; its multiplier does not train."""
    from memeff import MemoryEfficientCLIPLoss

    loss = MemoryEfficientCLIPLoss(temperature=1 / SCALE, normalized_inputs=True, stable=False)
    return loss(image.bfloat16(), text.bfloat16())


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

# Triton's, on a GPU, where they are installed.
KERNELS: dict[str, dict[str, Loss]] = {
    "clip": {"memeff": memeff},
    "siglip": {"siglip_kernel": siglip_kernel},
}


def forms(kind: str, device: str) -> dict[str, Loss]:
    """By name, ours last."""
    found = dict(LOSSES[kind])
    ours = {"mmtrain": found.pop("mmtrain")}
    kernels = KERNELS[kind] if device == "cuda" else {}
    return found | {n: k for n, k in kernels.items() if importlib.util.find_spec(n)} | ours


def measure(loss: Loss, batch: int, dim: int, device: str = "cpu") -> dict[str, float]:
    """Seconds and MiB above the features of one forward and backward, in this process."""
    if device == "cpu":  # if memory runs out all the same, this process is the one to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.manual_seed(0)

    def step(num_rows: int) -> tuple[float, float]:
        image, text = (
            F.normalize(torch.randn(num_rows, dim, device=device), dim=-1).requires_grad_()
            for _ in range(2)
        )
        scale = torch.tensor(SCALE, requires_grad=True, device=device)
        bias = torch.tensor(BIAS, requires_grad=True, device=device)
        before, start = _mark_memory(device), time.perf_counter()
        with fast_products(torch.device(device)):
            loss(image, text, scale, bias).backward()
        peak = _peak_mib(device)  # waits for the device
        return time.perf_counter() - start, peak - before

    step(256)  # starts the threads and loads the kernels
    if device == "cuda":
        step(batch)  # compiles what is compiled for a shape
    seconds, mib = step(batch)
    return {"seconds": seconds, "mib": mib}


def _mark_memory(device: str) -> float:
    """MiB in use now, above which a peak is meant."""
    if device == "cpu":
        reset_peak_memory()
        return kernel_mib("/proc/self/status", "VmRSS")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**20


def _peak_mib(device: str) -> float:
    if device == "cpu":
        return kernel_mib("/proc/self/status", "VmHWM")
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def measure_apart(arguments: argparse.Namespace, name: str, batch: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--loss", arguments.loss, "--dim", str(arguments.dim)]
    command += ["--threads", str(arguments.threads), "--device", arguments.device]
    command += ["--point", name, str(batch)]
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
            for name in forms(arguments.loss, arguments.device):
                if name == "mmtrain" or naive_fits(batch, arguments.naive_up_to):
                    points.setdefault(name, []).append(measure_apart(arguments, name, batch))
        peak = {name: max(p["mib"] for p in found) for name, found in points.items()}
        seconds = {
            name: statistics.median(p["seconds"] for p in found) for name, found in points.items()
        }
        for name in forms(arguments.loss, arguments.device):
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
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
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
        loss = forms(arguments.loss, arguments.device)[name]
        point = measure(loss, int(batch), arguments.dim, arguments.device)
        print(json.dumps(point))
        return
    head = [
        f"## {arguments.loss}, E = {arguments.dim}, fp32 features, {arguments.threads} threads",
        "",
        f"{describe_machine(arguments.device)}. Peak: memory above the features, gradients "
        f"included (largest of {arguments.repeats}); seconds: forward + backward (median of "
        f"{arguments.repeats}).",
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
