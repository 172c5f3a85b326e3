"""Write docs/scaling.md: what CLIPs from B/16 to H/14 take on 8 to 1,024 GPUs, on paper.

Every figure is `mmtrain plan`'s: counted work, counted traffic, counted memory, and the assumptions
that are printed beside them. Microbatches are the fewest that fit. Nothing is measured.

    python tools/write_scaling.py --out docs/scaling.md
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from mmtrain.build.workload import read_workload
from mmtrain.cli.endings import end_well
from mmtrain.cli.parser import Parser
from mmtrain.errors import UsageError
from mmtrain.files import writing
from mmtrain.parallel.accelerators import Accelerator
from mmtrain.plan.cost import Assumptions, Cost, cost_of, find_gpu
from mmtrain.plan.layout import Plan, plan_layout
from mmtrain.recipe import load_recipe
from mmtrain.settings.numbers import at_least, positive

RECIPE = Path(__file__).parents[1] / "configs" / "clip_vit_b32.toml"
MODELS = {"ViT-B-16": 1024, "ViT-L-14": 512, "ViT-H-14": 256}
"""And the rows of a microbatch that are tried first."""
BATCH, SAMPLES, ROOM = 32_768, 12_800_000_000, 0.9
"""Of a GPU's memory, a share is left to the framework."""

HEAD = """\
# Scaling, on paper

What a CLIP takes on 8 to 1,024 GPUs before one of them is rented. **Nothing here was measured**:
work, memory and traffic are counted from the model and the layout as they would run, and how fast a
GPU does the work is assumed. `mmtrain plan RECIPE --world-size N --gpu {gpu} --price {price:g}`
prints the same for any recipe; this page is written by `python tools/write_scaling.py`.

[configs/clip_vit_b32.toml](../configs/clip_vit_b32.toml) with another `model.name`, a global batch
of {batch:,}, bf16, texts at their full 77 tokens, {samples:,} samples (DataComp-1B's length), FSDP
within a machine and replicas of it over machines. Microbatches are the fewest that leave a tenth of
the memory free; where there are several, features are computed twice (two passes), which is work of
the hardware and not of the model.

"""
COLUMNS = (
    *("model", "GPUs", "rows a GPU", "microbatches", "GB a GPU", "TFLOPs a step", "samples/s"),
    *("a GPU", "MFU", "sent a step and GPU, GB", "days", "GPU hours", "price"),
)
FOOT = """
Assumed:

{assumed}

What the assumptions leave out makes real runs slower: stragglers, restarts, evaluation, data that
come late, features that the loss gathers over a slow network. What they overstate: captions are
shorter than 77 tokens, and texts that are cut to their longest take less than what stands here.

## Published figures beside

Others' runs, with their own software, as they report them: a yardstick for the {efficiency:.0%}
above, not a comparison with this page.

| who | model, GPU | samples/s a GPU | MFU |
|---|---|---|---|
| open_clip's and LAION's logs | ViT-B/32, A100 | 412 to 850 | 12 to 15 % |
| the same | ViT-B/16, A100 | 310 to 396 | 12 to 30 % |
| the same | ViT-L/14, A100 | 79 to 178 | 12 to 30 % |
| NeMo | ViT-g/14, A100 | 70 | 39 % |
| NeMo | ViT-g/14, H100 | 117 | 21 % |
| torchtitan, Megatron (language models) | H100 | | 33 to 48 % |
"""


def cheapest(name: str, gpus: int, gpu: Accelerator, assumed: Assumptions) -> tuple[Plan, Cost]:
    """The plan with the fewest microbatches that fits.

    Raises:
        UsageError: none does.
    """
    shard = min(gpus, 8)
    overrides = ["--model.name", name, "--train.batch_size", str(BATCH)]
    overrides += ["--parallel.dp_shard", str(shard), "--parallel.dp_replicate", str(gpus // shard)]
    microbatches = max(1, BATCH // gpus // MODELS[name])
    while True:
        words = [*overrides, "--train.microbatches", str(microbatches)]
        workload = read_workload(load_recipe(RECIPE, words))
        plan = plan_layout(workload, world_size=gpus)
        cost = cost_of(workload, plan, gpu, assumed, num_samples=SAMPLES)
        if cost.memory_gb <= ROOM * gpu.memory_gb:
            return plan, cost
        if BATCH // gpus <= microbatches:
            raise UsageError(f"--gpus {gpus}: {name} does not fit; give more, or a larger --gpu")
        microbatches *= 2


def row(name: str, gpus: int, gpu: Accelerator, assumed: Assumptions) -> str:
    """One line of the table."""
    plan, cost = cheapest(name, gpus, gpu, assumed)
    assert cost.hours is not None and cost.price is not None
    cells = [
        name,
        f"{gpus:,}",
        f"{BATCH // gpus:,}",
        f"{plan.num_microbatches}",
        f"{cost.memory_gb:.1f}",
        f"{cost.model_flops / 1e12:,.0f}",
        f"{cost.samples_per_second:,.0f}",
        f"{cost.samples_per_second / gpus:,.0f}",
        f"{cost.mfu:.1%}",
        f"{sum(one.sent for one in plan.traffic) / 1e9:.1f}",
        f"{cost.hours / 24:,.1f}",
        f"{cost.hours * gpus:,.0f}",
        f"{cost.price:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def run(arguments: argparse.Namespace) -> None:
    """Write the page."""
    gpu, assumed = find_gpu(arguments.gpu), replace(Assumptions(), price=arguments.price)
    facts = {"gpu": gpu.name, "price": arguments.price, "batch": BATCH, "samples": SAMPLES}
    text = HEAD.format(**facts)
    text += f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    for name in arguments.models:
        for gpus in arguments.gpus:
            line = row(name, gpus, gpu, assumed)
            print(line, flush=True)
            text += f"{line}\n"
    lines = "\n".join(f"- {line}" for line in assumed.lines(gpu, "bf16"))
    text += FOOT.format(assumed=lines, efficiency=assumed.efficiency)
    with writing(arguments.out):
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")


def _parser() -> Parser:
    parser = Parser(prog="write_scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--gpu", default="h100", metavar="NAME")
    parser.add_argument("--price", type=positive, default=2.5, metavar="X", help="of a GPU an hour")
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--gpus", type=at_least(1), nargs="+", default=[8, 64, 256, 1024])
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 2, after one line on stderr, for a user's mistake."""
    return end_well(lambda: run(_parser().parse_args(arguments)), name="write_scaling")


if __name__ == "__main__":
    sys.exit(main())
