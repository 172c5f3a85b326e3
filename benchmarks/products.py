"""fp32 products on a CPU: torch as it comes against `mmtrain.nn.products`, alternating in one run.

The shapes are those of CLIP's towers: a layer forward, both of its gradients, the products of
attention. Prints GFLOP/s of processor time in one thread, and how far both are from fp64. On most
processors the two are the same library, and the ratio is 1.

    python benchmarks/products.py --out benchmarks/results/products_cpu.md
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from machine import describe_machine
from torch import Tensor

from mmtrain.nn.products import by_onednn, fast_products

CPU = torch.device("cpu")
# Rows, inputs, outputs: of the demo's model, ViT-B/32 at batch 32, and a small product.
LAYERS = ((2176, 192, 576), (2176, 512, 192), (1600, 768, 768), (1600, 768, 3072), (16, 48, 48))
# Batch, tokens, head size.
HEADS = ((768, 17, 32), (384, 50, 64), (192, 197, 64))
FORMS = {"as it comes": nullcontext, "mmtrain": lambda: fast_products(CPU)}


def cases() -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], int]]:
    """By name: the product, the same in fp64, and its operations."""
    found = {}
    for rows, inputs, outputs in LAYERS:
        x, w, g = (torch.randn(s) for s in ((rows, inputs), (outputs, inputs), (rows, outputs)))
        flops, name = 2 * rows * inputs * outputs, f"{rows:,} x {inputs} x {outputs}"
        for kind, a, b in (("forward", x, w.T), ("inputs", g, w), ("weights", g.T, x)):
            found[f"{name}, {kind}"] = _case(a, b, flops)
    for batch, tokens, size in HEADS:
        q, k = torch.randn(2, batch, tokens, size)
        flops = 2 * batch * tokens * tokens * size
        found[f"{batch} x {tokens} x {size}, queries and keys"] = _case(q, k.mT, flops)
    return found


def _case(a: Tensor, b: Tensor, flops: int):
    return lambda: a @ b, lambda: a.double() @ b.double(), flops


def measure(product: Callable[[], Tensor], flops: int, rounds: int) -> dict[str, float]:
    """GFLOP/s of each form."""
    repeats = max(2, int(2e9 / flops))
    speeds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(rounds):
        for form, chosen in FORMS.items():
            with chosen():
                product()
                start = time.process_time()
                for _ in range(repeats):
                    product()
                passed = time.process_time() - start
            speeds[form].append(repeats * flops / passed / 1e9)
    return {form: statistics.median(found) for form, found in speeds.items()}


def error(product: Callable[[], Tensor], exact: Callable[[], Tensor], form: str) -> float:
    """The largest difference from fp64, over the largest number."""
    want = exact()
    with FORMS[form]():
        return float((product() - want).abs().max() / want.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with fast_products(CPU):
        library = "oneDNN" if by_onednn() else "the same library"
    lines = [
        "# fp32 products on a CPU, as torch comes and as mmtrain has them",
        "",
        f"{describe_machine()}; one thread, medians of {arguments.rounds} alternating rounds; "
        f"mmtrain takes {library} here.",
        "",
        "| rows x inputs x outputs | torch as it comes, GFLOP/s | mmtrain, GFLOP/s | ratio "
        "| largest error, torch | mmtrain |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name, (product, exact, flops) in cases().items():
        plain, ours = measure(product, flops, arguments.rounds).values()
        errors = " | ".join(f"{error(product, exact, form):.1e}" for form in FORMS)
        lines.append(f"| {name} | {plain:.0f} | {ours:.0f} | {ours / plain:.2f}x | {errors} |")
        print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
