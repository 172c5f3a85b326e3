"""A training step of a CLIP eager and compiled, ours and open_clip's, alternating in one run.

The four ways start from the same weights and see the same batch (benchmarks/train_step.py has the
steps); ours is compiled block by block, open_clip's model as a whole. Every turn ends with products
of 4,096 x 4,096 in the same format: what this host gives at that moment. Prints samples per second
of processor time in one thread, each way's ratio to open_clip's *better* one, turn by turn, the
share of the host's rate that our model's FLOPs come to, the time to the first compiled step, and
the peak memory of a process that runs one way alone.

    python benchmarks/compiled_step.py --out benchmarks/results/compiled_step_cpu.md
    python benchmarks/compiled_step.py --models ViT-B-16 --batch-size 16 --precisions bf16
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import open_clip
import torch
from machine import describe_machine
from train_step import BUILDERS, Step, make_batch, our_model, peak_memory

import mmtrain
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.models.flops import clip_flops

CPU = torch.device("cpu")
WAYS = {
    "ours": ("ours", False),
    "ours, compiled": ("ours", True),
    "open_clip": ("open_clip", False),
    "open_clip, compiled": ("open_clip", True),
}
SIZE = 4096


class Host:
    """Products of 4,096 rows and columns, forward as a linear layer has them."""

    def __init__(self, precision: str) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.x, self.w = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
        self.repeats = 8 if dtype == torch.bfloat16 else 1

    def rate(self) -> float:
        """FLOP/s of processor time."""
        began = time.process_time()
        for _ in range(self.repeats):
            torch.nn.functional.linear(self.x, self.w)
        return self.repeats * 2 * SIZE**3 / (time.process_time() - began)


def timed(step: Step) -> tuple[float, float]:
    """Loss of a step and its seconds of processor time."""
    began = time.process_time()
    return step(), time.process_time() - began


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What the ways took, turn by turn.

    Args:
        flops: of the model, for a step.
        firsts: seconds of each way's first step.
        losses: of that step.
        seconds: by way, of the steps after it.
        rates: FLOP/s of the host's large products.
    """

    flops: float
    firsts: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)

    @property
    def opponent(self) -> str | None:
        """open_clip's better way."""
        theirs = [way for way in self.seconds if way.startswith("open_clip")]
        return min(theirs, key=lambda way: statistics.median(self.seconds[way]), default=None)

    def ratio(self, way: str) -> str:
        """How much faster than the opponent, with the range over the turns."""
        if self.opponent is None:
            return ""
        pairs = zip(self.seconds[way], self.seconds[self.opponent], strict=True)
        found = [theirs / ours for ours, theirs in pairs]
        bold = "**" if way.startswith("ours") else ""
        spread = f"({min(found):.2f} to {max(found):.2f})"
        return f"{bold}{statistics.median(found):.2f}x{bold} {spread}"

    def share(self, way: str) -> str:
        """Of the host's rate."""
        if not way.startswith("ours"):
            return ""
        pairs = zip(self.seconds[way], self.rates, strict=True)
        return f"{statistics.median(self.flops / taken / rate for taken, rate in pairs):.0%}"


def by_turns(name: str, precision: str, args: argparse.Namespace) -> Turns:
    """Run the ways one after another, several times; every turn is told as it ends."""
    config = our_model(name, CPU).config
    tokenizer = build_tokenizer(TokenizerConfig())
    batch = make_batch(args.batch_size, config.vision.image_size, tokenizer)
    flops = clip_flops(config, text_length=batch.tokens_BT.size(1)).training
    turns, steps, host = Turns(flops=flops * args.batch_size), {}, Host(precision)
    for way in args.ways:
        side, compile = WAYS[way]
        steps[way] = BUILDERS[side](name, batch, precision, CPU, compile=compile)
        turns.losses[way], turns.firsts[way] = timed(steps[way])
        turns.seconds[way] = []
        print(f"{way}: {turns.firsts[way]:.1f} s the first step", file=sys.stderr, flush=True)
    for turn in range(args.rounds + 1):
        for way, step in steps.items():
            taken = timed(step)[1]
            if turn:  # the first warms up
                turns.seconds[way].append(taken)
        rate = host.rate()
        if turn:
            turns.rates.append(rate)
            told = ", ".join(f"{way} {taken[-1]:.2f} s" for way, taken in turns.seconds.items())
            print(f"{told}, products {rate / 1e9:,.0f} GFLOP/s", file=sys.stderr, flush=True)
    return turns


def measure(name: str, precision: str, args: argparse.Namespace) -> list[str]:
    """The rows of one model and format."""
    turns, rows = by_turns(name, precision, args), []
    for way, taken in turns.seconds.items():
        side, compile = WAYS[way]
        memory = ""
        if args.memory:
            memory = f"{peak_memory(side, name, precision, args, compile=compile):,.0f} MiB"
        apart = abs(turns.losses[way] - turns.losses[args.ways[0]])
        cells = [name, precision, str(args.batch_size), way]
        cells += [f"{args.batch_size / statistics.median(taken):.2f}", turns.ratio(way)]
        cells += [turns.share(way), f"{turns.firsts[way]:.0f} s", memory, f"{apart:.1e}"]
        rows.append(f"| {' | '.join(cells)} |")
    rate, least, most = (of(turns.rates) / 1e9 for of in (statistics.median, min, max))
    rows.append(
        f"| {name} | {precision} | | {SIZE:,} products | {rate:,.0f} GFLOP/s ({least:,.0f} to "
        f"{most:,.0f}) | | | | | |"
    )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.threads, args.device = 1, "cpu"
    lines = [
        "# A training step eager and compiled, ours and open_clip's",
        "",
        f"{describe_machine()}, open_clip {open_clip.__version__}, mmtrain {mmtrain.__version__}; "
        f"one thread, samples per second of processor time, medians of {args.rounds} alternating "
        "rounds of one step, in brackets the range over them. The ratio is to the better of "
        "open_clip's two; the share is our model's FLOPs a second over the rate of a product of "
        f"{SIZE:,} rows and columns in the same turn.",
        "",
        "| model | format | batch | | samples/s | ratio | share of the host's rate | first step "
        "| peak memory | first loss apart |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in args.models:
        for precision in args.precisions:
            lines += measure(name, precision, args)
            print("\n".join(lines[-len(args.ways) - 1 :]), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
