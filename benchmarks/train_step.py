"""One training step of a CLIP, ours against open_clip's, alternating in one run.

Both start from the same weights and see the same pictures and captions (of natural length, from the
data in the package). A step is forward, loss, backward, AdamW and the clamp of the scale; open_clip
is given its images normalised, as its pipeline does, ours are uint8. Prints samples per second,
the ratio pair by pair, the peak memory of a process that runs one side alone, and how far the two
first losses are apart.

    python benchmarks/train_step.py --out benchmarks/results/train_step_cpu.md
    python benchmarks/train_step.py --device cuda --batch-size 256 --steps 20
"""

import argparse
import importlib.util
import itertools
import json
import logging
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from machine import describe_machine, kernel_mib, reset_peak_memory
from torch import Tensor

import mmtrain
from mmtrain.data.batch import ImageTextBatch
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
from mmtrain.demo import debug_pairs
from mmtrain.interop.open_clip import from_open_clip
from mmtrain.models import Clip
from mmtrain.models.flops import clip_flops
from mmtrain.models.named import named_model
from mmtrain.models.parameters import hidden_matrix_names, no_decay_names
from mmtrain.nn.products import fast_products
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.optimizer import build_optimizers
from mmtrain.parallel.apply import parallelize
from mmtrain.parallel.mesh import Layout, ParallelConfig
from mmtrain.tasks.config import LossSection
from mmtrain.tasks.contrastive import contrastive_objective
from mmtrain.train.step import build_schedule

Step = Callable[[], float]

# Dense bf16 products per second, for the MFU: the makers' figures.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}


def make_batch(size: int, image_size: int, tokenizer: Tokenizer) -> ImageTextBatch:
    """Random pixels and real captions, repeated as often as it takes."""
    with tarfile.open(debug_pairs().train) as tar:
        names = [info for info in tar if info.name.endswith(".txt")]
        files = [tar.extractfile(info) for info in names]
        captions = [file.read().decode() for file in files if file is not None]
    texts = list(itertools.islice(itertools.cycle(captions), size))
    tokens_BT, length_B = tokenizer.encode(texts)
    generator = torch.Generator().manual_seed(0)
    shape = (size, 3, image_size, image_size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return ImageTextBatch(
        images_BCHW=images.contiguous(memory_format=torch.channels_last),
        tokens_BT=tokens_BT,
        text_length_B=length_B,
        label_B=torch.full((size,), -1),
        position_B=torch.arange(size),
        valid_B=torch.ones(size, dtype=torch.bool),
        epoch=0,
        keys=tuple(map(str, range(size))),
    )


def has_open_clip() -> bool:
    """Whether there is anything to compare with."""
    return importlib.util.find_spec("open_clip") is not None


def their_model(name: str, device: torch.device) -> torch.nn.Module:
    """open_clip's model with the weights of a fixed seed."""
    import open_clip

    logging.disable(logging.WARNING)  # that the weights are random, which is meant
    torch.manual_seed(0)
    return open_clip.create_model(name, precision="fp32", device=device, output_dict=False)


def our_model(name: str, device: torch.device) -> Clip:
    """Of open_clip's architecture and weights, or of our own where it is not installed."""
    if not has_open_clip():
        return Clip(named_model(name)).init_weights(0)
    import open_clip

    model_cfg = open_clip.get_model_config(name)
    assert model_cfg is not None, f"open_clip knows no model {name}"
    config, tensors = from_open_clip(model_cfg, their_model(name, device).state_dict())
    model = Clip(config)
    model.load_state_dict(tensors)
    return model


def build_ours(
    name: str, batch: ImageTextBatch, precision: str, device: torch.device, *, compile: bool = False
) -> Step:
    """A step of ours."""
    model = our_model(name, device)
    layout = Layout(device=device, config=ParallelConfig())
    no_decay, hidden = no_decay_names(model), hidden_matrix_names(model)
    stages = parallelize(model, layout, precision=precision, compile=compile)
    objective = contrastive_objective(model, LossSection(), layout=layout, seed=0)
    named = {**dict(stages[0].named_parameters()), **objective.parameters()}
    optimizers = build_optimizers(
        named.items(), OptimConfig(), no_decay=no_decay, hidden_matrices=hidden
    )
    schedule = build_schedule(stages, layout, num_microbatches=1, batch_size=batch.num_rows)
    batch = batch.to(device)

    def step() -> float:
        with fast_products(device):
            loss = objective.step(schedule, batch)
            optimizers.step()
        objective.clamp()
        optimizers.zero_grad()
        return loss.item()

    return step


def build_theirs(
    name: str, batch: ImageTextBatch, precision: str, device: torch.device, *, compile: bool = False
) -> Step:
    """A step as open_clip's trainer takes it: its model, loss, autocast and AdamW groups."""
    import open_clip

    model = their_model(name, device).train()
    if precision == "bf16-pure":
        model = model.to(torch.bfloat16)
    loss_of = open_clip.ClipLoss()
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or "logit_scale" in n]
    decayed = [p for n, p in model.named_parameters() if not (p.ndim < 2 or "logit_scale" in n)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    images = ((batch.images_BCHW.float() / 255 - mean) / std).contiguous().to(device)
    if precision == "bf16-pure":
        images = images.to(torch.bfloat16)
    tokens = torch.zeros(batch.num_rows, 77, dtype=torch.int64)
    tokens[:, : batch.tokens_BT.size(1)] = batch.tokens_BT
    tokens = tokens.to(device)
    casts = precision in ("bf16", "bf16-main")
    autocast = torch.autocast(device.type, torch.bfloat16) if casts else nullcontext()

    forward = torch.compile(model) if compile else model

    def step() -> float:
        optimizer.zero_grad()
        with autocast:
            image, text, scale, *_ = forward(images, tokens)
            loss: Tensor = loss_of(image, text, scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.605170185988092)
        return loss.item()

    return step


BUILDERS = {"ours": build_ours, "open_clip": build_theirs}


def measure(
    name: str,
    precision: str,
    args: argparse.Namespace,
    *,
    sides: Sequence[str] = tuple(BUILDERS),
    compile: bool = False,
) -> dict[str, float]:
    """All sides in turn: medians of samples per second, and of the ratio pair by pair."""
    device = torch.device(args.device)
    config = our_model(name, device).config
    tokenizer = build_tokenizer(TokenizerConfig())
    batch = make_batch(args.batch_size, config.vision.image_size, tokenizer)
    steps = {s: BUILDERS[s](name, batch, precision, device, compile=compile) for s in sides}
    losses = {side: step() for side, step in steps.items()}  # also the warm-up
    # On a CPU, of the processor: what else runs there disturbs that least.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    speeds: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(args.rounds):
        for side, step in steps.items():
            start = clock()
            for _ in range(args.steps):
                step()
            passed = clock() - start
            speeds[side].append(args.steps * args.batch_size / passed)
    flops = clip_flops(config, text_length=batch.tokens_BT.size(1)).training
    found = {side: statistics.median(speed) for side, speed in speeds.items()}
    found |= {"tflops": found["ours"] * flops / 1e12, "tokens": batch.tokens_BT.size(1)}
    if peak := peak_tflops(args):
        found["mfu"] = found["tflops"] / peak
    if "open_clip" in speeds:
        pairs = zip(speeds["ours"], speeds["open_clip"], strict=True)
        found["ratio"] = statistics.median(one / two for one, two in pairs)
        found["loss_difference"] = abs(losses["ours"] - losses["open_clip"])
    return found


def peak_memory(
    side: str, name: str, precision: str, args: argparse.Namespace, *, compile: bool = False
) -> float:
    """MiB at the peak of two steps of one side, in a process of its own, weights included."""
    words = [sys.executable, __file__, "--only", side, "--models", name, "--precisions", precision]
    words += ["--batch-size", str(args.batch_size), "--device", args.device]
    words += ["--threads", str(args.threads), *(["--compile"] if compile else [])]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])["mib"]


def run_one_side(args: argparse.Namespace) -> None:
    """What `peak_memory` starts."""
    device, name = torch.device(args.device), args.models[0]
    tokenizer = build_tokenizer(TokenizerConfig())
    image_size = our_model(name, device).config.vision.image_size
    batch = make_batch(args.batch_size, image_size, tokenizer)
    step = BUILDERS[args.only](name, batch, args.precisions[0], device, compile=args.compile)
    if args.compile:
        step()  # what the compiler holds is not the step's
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak_memory()  # building ours holds open_clip's model for a moment
    for _ in range(2):
        step()
    if device.type == "cuda":
        mib = torch.cuda.max_memory_allocated() / 2**20
    else:
        mib = kernel_mib("/proc/self/status", "VmHWM")
    print(json.dumps({"mib": mib}))


def peak_tflops(args: argparse.Namespace) -> float | None:
    """Of the device: as given, or as its maker says."""
    given = getattr(args, "peak_tflops", None)
    if given or args.device != "cuda":
        return given
    name = torch.cuda.get_device_name()
    return next((peak for kind, peak in PEAK_TFLOPS.items() if kind in name), None)


def report(args: argparse.Namespace) -> str:
    """The table, with the machine and the versions."""
    import open_clip

    lines = [
        "# One training step, ours against open_clip's",
        "",
        f"{describe_machine(args.device)}; {torch.get_num_threads()} threads; open_clip "
        f"{open_clip.__version__}, mmtrain {mmtrain.__version__}; batch {args.batch_size}, "
        f"{args.rounds} alternating rounds of {args.steps} steps, medians.",
        "",
        "| model | precision | ours, samples/s | open_clip, samples/s | ratio | peak memory, ours "
        "/ open_clip | first losses differ by | ours, model TFLOP/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in args.models:
        for precision in args.precisions:
            ours, theirs = (peak_memory(side, name, precision, args) for side in BUILDERS)
            found = measure(name, precision, args)
            mfu = f" ({found['mfu']:.1%} MFU)" if "mfu" in found else ""
            lines.append(
                f"| {name} | {precision} | {found['ours']:.2f} | {found['open_clip']:.2f} | "
                f"**{found['ratio']:.2f}x** | {ours:,.0f} / {theirs:,.0f} MiB | "
                f"{found['loss_difference']:.1e} | {found['tflops']:.3f}{mfu} |"
            )
            print(lines[-1], flush=True)
    lines += [
        "",
        f"Captions are cut to the longest of the batch ({found['tokens']} tokens of 77), which is "
        "exact; open_clip 3.3 computes all 77. bf16 is autocast on both sides; a CPU without bf16 "
        "units emulates its products.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1, help="steps of one side at a time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the MFU")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--only", choices=tuple(BUILDERS), help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        run_one_side(args)
        return
    text = report(args)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)


if __name__ == "__main__":
    main()
