"""A training step on a CPU with memory that is freed kept by the process (as mmtrain has it), and
returned to the system (as glibc comes).

Each round starts a process for either: steps of our CLIP as benchmarks/train_step.py takes them.
Processor time a step, page faults a step, and the largest memory of the process.

    python benchmarks/kept_memory.py --out benchmarks/results/kept_memory_cpu.md
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from machine import describe_machine, tell_table
from train_step import build_ours, make_batch, our_model

from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.nn.heap import kept_memory

WAYS = ("returned", "kept")


def take_steps(name: str, precision: str, args: argparse.Namespace) -> dict[str, float]:
    """What a process of its own measures."""
    device, size = torch.device("cpu"), our_model(name, torch.device("cpu")).config.vision
    batch = make_batch(args.batch_size, size.image_size, build_tokenizer(TokenizerConfig()))
    step = build_ours(name, batch, precision, device)
    with kept_memory(device) if args.only == "kept" else nullcontext():
        step()
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(args.steps):
            step()
        after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {
        "seconds": (user + system) / args.steps,
        "system": system / args.steps,
        "faults": (after.ru_minflt - before.ru_minflt) / args.steps,
        "mib": after.ru_maxrss / 1024,
    }


def rows(args: argparse.Namespace) -> Iterator[str]:
    """A line for each model and precision and way."""
    for name in args.models:
        for precision in args.precisions:
            found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(args.rounds):
                for way in WAYS:
                    words = ["--only", way, "--models", name, "--precisions", precision]
                    words += ["--batch-size", str(args.batch_size), "--steps", str(args.steps)]
                    words += ["--threads", str(args.threads)]
                    done = subprocess.run(
                        [sys.executable, __file__, *words],
                        check=True,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
            middle = {
                way: {key: statistics.median(one[key] for one in of) for key in of[0]}
                for way, of in found.items()
            }
            pairs = zip(found["returned"], found["kept"], strict=True)
            ratio = statistics.median(one["seconds"] / two["seconds"] for one, two in pairs)
            for way, one in middle.items():
                faster = f"**{ratio:.2f}x**" if way == "kept" else "1"
                yield (
                    f"| {name} | {precision} | {way} | {one['seconds']:.2f} s | {faster} | "
                    f"{one['system']:.2f} s | {one['faults']:,.0f} | {one['mib']:,.0f} MiB |"
                )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["ViT-B-32"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of each process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the table here too")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        print(json.dumps(take_steps(args.models[0], args.precisions[0], args)))
        return
    table = [
        "# Freed memory, kept or returned",
        "",
        f"{describe_machine()}; {args.threads} threads, batch {args.batch_size}; medians of "
        f"{args.rounds} processes of {args.steps} steps each, by turns; "
        "`python benchmarks/kept_memory.py`.",
        "",
        "| model | precision | freed memory is | processor time a step | ratio | of it system | "
        "page faults | largest |",
        "|---|---|---|---|---|---|---|---|",
        *rows(args),
    ]
    tell_table(table, args.out)


if __name__ == "__main__":
    main()
