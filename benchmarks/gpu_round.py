"""What benchmarks/gpu_round.sh runs: each part in a process of its own, within its share of time.

A part that fails, runs out of time or lacks a package is a line of the table, never the end of the
round. Figures are of the device that ran it and of nothing else.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import describe_machine

HERE = Path(__file__).parent
NEEDED = ("simplejpeg", "webdataset", "tokenizers", "ftfy", "safetensors", "tomli_w", "rich")
Rows = list[dict[str, Any]]


def seconds_of(work: Callable[[], object], device: str, repeats: int) -> float:
    """Of one call, after two that warm up."""
    work(), work()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def rates(device: str, quick: bool) -> Rows:
    """What the device gives a large product, and the way to it from pinned memory."""
    size = 512 if quick else 8192
    rows: Rows = []
    for name, dtype, setting in (
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(setting)
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
        passed = seconds_of(lambda a=a, b=b: a @ b, device, 10)
        rows.append({"product": f"{size} {name}", "TFLOP/s": 2 * size**3 / passed / 1e12})
    if device == "cuda":
        host = torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
        passed = seconds_of(lambda: host.to(device, non_blocking=True), device, 5)
        rows.append({"copy": "pinned memory to device, 1 GiB", "GB/s": host.numel() / passed / 1e9})
    return rows


def tests(device: str, quick: bool) -> Rows:
    """`make test-gpu`, counted."""
    report = HERE / ".gpu_tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    where = ["tests/train/test_gpu.py", "-k", "formula"] if quick else ["tests"]
    done = subprocess.run(
        [*command, f"--junitxml={report}", *where],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"MMTRAIN_TEST_DEVICE": device},
    )
    suite = ElementTree.parse(report).getroot().find("testsuite")
    report.unlink()
    assert suite is not None
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.get('name')}: {(found.get('message') or '').splitlines()[:1]}"
        for case in suite
        for found in (*case.findall("failure"), *case.findall("error"))
    ]
    if failed:
        print(done.stdout[-4000:], file=sys.stderr)
    return [counts | ({"failed": failed} if failed else {})]


def step(device: str, quick: bool) -> Rows:
    """A training step, against open_clip's where that can be imported."""
    import train_step

    sides = ("ours", "open_clip") if train_step.has_open_clip() else ("ours",)
    rows: Rows = []
    models = ("ViT-S-32",) if quick else ("ViT-B-32", "ViT-B-16", "ViT-L-14")
    for name in models:
        for precision in ("bf16",) if quick else ("bf16", "bf16-main"):
            for compiled in (False,) if quick else (False, True):
                size = 2 if quick else {"ViT-B-32": 1024, "ViT-B-16": 512, "ViT-L-14": 128}[name]
                args = SimpleNamespace(
                    device=device,
                    batch_size=size,
                    rounds=1 if quick else 3,
                    steps=1 if quick else 8,
                )
                found = train_step.measure(name, precision, args, sides=sides, compile=compiled)
                row: dict[str, Any] = {"model": name, "precision": precision, "batch": size}
                rows.append(row | {"compiled": compiled} | found)
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def loss(device: str, quick: bool) -> Rows:
    """Forward and backward of the losses, against those that are there."""
    import loss_memory

    rows: Rows = []
    for kind in loss_memory.LOSSES:
        for batch in (256,) if quick else (4096, 16384, 65536):
            for name, form in loss_memory.forms(kind, device).items():
                matrices = loss_memory.NAIVE_MATRICES * 4 * batch**2
                naive = name not in ("mmtrain", *loss_memory.KERNELS[kind])
                if naive and device == "cuda" and matrices > 0.8 * free_bytes():
                    continue
                found = loss_memory.measure(form, batch, 768, device)
                rows.append({"loss": kind, "batch": batch, "form": name} | found)
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def free_bytes() -> int:
    """Of the device's memory."""
    return torch.cuda.mem_get_info()[0]


def train(device: str, quick: bool) -> Rows:
    """`mmtrain train` from tars to updates: what the loader gives and the device takes."""
    out = HERE.parent / "runs" / f"gpu_round_train_{time.time_ns()}"
    words = ["train", f"configs/{'debug_clip' if quick else 'clip_vit_b32'}.toml"]
    words += ["--run-dir", str(out), "--train.device", device, "--train.steps", "60"]
    words += ["--data.train", "mmtrain/demo/debug/train.tar", "--train.log_every", "10"]
    if not quick:  # as many rows as there are pictures; a real recipe's is larger
        words += ["--train.epochs", "none", "--train.batch_size", "64", "--data.workers", "8"]
    subprocess.run([sys.executable, "-m", "mmtrain", *words], check=True, stdout=sys.stderr)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "loss" in line][-1]
    names = ("samples_per_second", "data_wait_fraction", "memory_mb", "loss")
    return [{name: last[name] for name in names if name in last}]


# By name: the part, and the seconds that it may take.
PARTS: dict[str, tuple[Callable[[str, bool], Rows], int]] = {
    "rates": (rates, 40),
    "tests": (tests, 200),
    "step": (step, 150),
    "loss": (loss, 60),
    "train": (train, 60),
}


def run_part(name: str, device: str) -> dict[str, Any]:
    """Its rows, or what ended it."""
    command = [sys.executable, __file__, "--part", name, "--device", device]
    start, limit = time.monotonic(), PARTS[name][1] * (1 if device == "cuda" else 4)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"ended": f"after its {limit} s"}
    found = {"seconds": round(time.monotonic() - start, 1)}
    if done.returncode:
        return found | {"ended": f"with status {done.returncode}"}
    return found | {"rows": json.loads(done.stdout.splitlines()[-1])}


def table(found: dict[str, Any]) -> str:
    """All parts in Markdown."""
    lines = [f"# One round on {found['machine']}", "", f"mmtrain at {found['commit']}.", ""]
    for name, part in found["parts"].items():
        lines += [f"## {name}", ""]
        if "rows" not in part:
            lines += [f"ended {part['ended']}", ""]
            continue
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in part["rows"]:
            lines.append(f"| {' | '.join(_cell(row.get(key, '')) for key in columns)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def commit() -> str:
    """Of the checkout, if it is one."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE
    )
    return done.stdout.strip() or "an unknown commit"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_round"))
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        rows = PARTS[args.part][0](args.device, args.device == "cpu")
        print(json.dumps(rows))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; DEVICE=cpu rehearses the round")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"these packages are missing: {', '.join(missing)}; see WHEELS in the script")
    found: dict[str, Any] = {"machine": describe_machine(args.device), "commit": commit()}
    found["parts"] = {}
    args.out.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        print(f"== {name}", file=sys.stderr, flush=True)
        found["parts"][name] = run_part(name, args.device)
        (args.out / "gpu_round.json").write_text(json.dumps(found, indent=1))
        (args.out / "gpu_round.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
