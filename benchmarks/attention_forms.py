"""Which form of attention wins: three plain dense operations or torch's fused kernel.

Forward and backward of both at the lengths of CLIP's towers, alternating in one run; the medians
decide `PLAIN_UP_TO` in mmtrain/nn/attention.py, the longest sequence for which plain ones win.

    python benchmarks/attention_forms.py --out benchmarks/results/attention_forms_cpu.md
    python benchmarks/attention_forms.py --device cuda --batch-size 256
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from machine import describe_machine
from torch import Tensor

from mmtrain.nn import Mask, attention

# Heads, tokens, causal: captions, ViT-B/32, OpenAI's context, and B/16 and L/14 with and without
# half of their patches.
SHAPES = (
    (8, 16, True),
    (8, 32, True),
    (12, 50, False),
    (8, 77, True),
    (12, 99, False),
    (12, 129, False),
    (12, 197, False),
    (16, 257, False),
)
FORMS = {"plain": attention._attend_plain, "fused": attention._attend_fused}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def one_pass(form: str, inputs: list[Tensor], mask: Mask) -> float:
    """Seconds of a forward and a backward."""
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    out = FORMS[form](*inputs, mask)
    out.backward(torch.ones_like(out))
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(arguments: argparse.Namespace, dtype: str, shape: tuple[int, int, bool]) -> str:
    """A row of the table."""
    heads, tokens, causal = shape
    inputs = [
        torch.randn(
            arguments.batch_size, tokens, heads, 64, dtype=DTYPES[dtype], device=arguments.device
        ).requires_grad_()
        for _ in range(3)
    ]
    mask = Mask(causal=causal)
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for turn in range(arguments.repeats + 1):
        for form in FORMS:
            passed = one_pass(form, inputs, mask)
            if turn:  # the first loads the kernels
                seconds[form].append(passed)
    plain, fused = (1e3 * statistics.median(seconds[form]) for form in FORMS)
    kind = "causal" if causal else "full"
    winner = "plain" if plain < fused else "fused"
    row = f"| {dtype} | {heads} | {tokens} | {kind} | {plain:.2f} | {fused:.2f} "
    return f"{row}| {fused / plain:.2f}x | {winner} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=tuple(DTYPES))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    lines = [
        "# Attention: plain against fused, forward + backward",
        "",
        f"{describe_machine(arguments.device)}; {arguments.threads} threads, batch "
        f"{arguments.batch_size}, 64 features a head, median of {arguments.repeats}.",
        "",
        "| dtype | heads | tokens | mask | plain, ms | fused, ms | fused / plain | winner |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for dtype in arguments.dtypes:
        for shape in SHAPES:
            lines.append(compare(arguments, dtype, shape))
            print(lines[-1], flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
