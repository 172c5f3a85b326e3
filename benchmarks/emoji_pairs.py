"""EmojiPairs at a fixed budget: the bar of the two designs never trained on, and what each setting
is worth.

    python benchmarks/emoji_pairs.py choose       # on a training design held out: settings
    python benchmarks/emoji_pairs.py bar          # on the held-out designs, three seeds: results

Settings are chosen by `choose`, which never reads a drawing by Twemoji or OpenMoji, nor one of the
125 new concepts: it takes the training design Fx and a tenth of the training concepts out and asks
for these. Every run is the command `mmtrain train configs/clip_emoji.toml` with overrides, in a
folder of its own under --runs; one that is finished is not run again, one that was cut short goes
on. Each takes --threads; start the command twice to use more cores, every run is done by whoever
comes first.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from machine import describe_machine

from mmtrain.demo.emoji_pairs import split_emoji_pairs, unpack_emoji_pairs

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs" / "clip_emoji.toml"
BUDGET = 84_480
"""Samples seen of a run at the bar: 10 epochs of 8,448."""
SEEDS = (0, 1, 2)

ADAMW = {"optim.kind": "adamw", "optim.muon_weight_decay": "0.0"}
PLAIN = {
    **ADAMW,
    "optim.lr": "5e-4",
    "train.batch_size": "256",
    "data.captions": "{ txt = 1.0 }",
    "loss.positives": "none",
    **{
        f"model.{tower}.transformer.{key}": value
        for tower in ("vision", "text")
        for key, value in (("norm", "layer"), ("activation", "gelu"), ("qk_norm", "none"))
    },
    "model.vision.positions": "learned",
    "model.text.positions": "learned",
}
"""open_clip's settings on our recipe."""
CORE = tuple(key for key in PLAIN if key.startswith("model."))
CHANGES = {
    "Muon": (*ADAMW, "optim.lr"),
    "batch 128": ("train.batch_size",),
    "names half the time": ("data.captions",),
    "several positives": ("loss.positives",),
    "names half the time, several positives": ("data.captions", "loss.positives"),
    "RMSNorm, SwiGLU, qk-norm, RoPE": CORE,
}
"""What the recipe changes, by the keys of PLAIN that it drops. Drawings of a concept that all have
one text are each other's positives already: those alone change nothing but with other captions."""
FINE = {"model.vision.patch_size": "8", "train.precision": "bf16"}
"""What configs/clip_emoji_fine.toml changes: 64 image tokens instead of 16, in bf16, which wants a
CPU with AMX or a GPU. The demo there."""
COLORS = {
    "data.augment.color_jitter": "[0.4, 0.4, 0.4, 0.1]",
    "data.augment.color_jitter_prob": "0.8",
    "data.augment.gray_scale_prob": "0.2",
}
TRIED = {
    "as configs/clip_emoji.toml": {},
    "+ batch 64": {"train.batch_size": "64"},
    "+ patch 8": FINE,
    "+ patch 8, one keyword 30 % of the time": {
        **FINE,
        "data.captions": "{ txt = 0.3, name = 0.4, keywords = 0.3 }",
    },
    "+ patch 8, the name alone three quarters of the time": {
        **FINE,
        "data.captions": "{ txt = 0.25, name = 0.75 }",
    },
    "+ patch 8, the name alone nine times in ten": {
        **FINE,
        "data.captions": "{ txt = 0.1, name = 0.9 }",
    },
    "+ convolutions first": {"model.vision.stem_channels": "[24, 48, 96, 192]"},
    "+ weight decay 0.5": {"optim.weight_decay": "0.5"},
    "+ never the name alone": {"data.captions": "{ txt = 1.0 }"},
}
"""Further settings, laid over the whole recipe."""


def choices(samples: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Each change alone, all together, and what else was tried, for runs of so many samples."""
    yield "plain", PLAIN
    for name, keys in CHANGES.items():
        yield f"plain + {name}", {key: value for key, value in PLAIN.items() if key not in keys}
    yield from TRIED.items()
    small = samples // 128 * 3 // 5 * 128
    phases = f"[{{ samples = {small}, image_size = 32 }}, {{ samples = {samples - small} }}]"
    halved = {**FINE, "train.phase": phases}
    yield "+ patch 8, 60 % of the samples at 32 px", halved
    yield "+ the same, other colours", halved | COLORS


def train(
    folder: Path, overrides: dict[str, str], *, samples: int, seed: int, threads: int
) -> None:
    """One run into `folder`, unless it is there or another process is at it; phases say its length,
    where there are some."""
    if (folder / "export").is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_suffix(".lock")
    try:
        lock.touch(exist_ok=False)
    except FileExistsError:
        return
    batch = int(overrides.get("train.batch_size", "128"))
    keys = overrides | {"run.seed": str(seed)}
    if "train.phase" not in overrides:
        keys["train.steps"] = str(samples // batch)
    words = [word for key, value in keys.items() for word in (f"--{key}", value)]
    resume = ["--resume"] if (folder / "recipe.toml").is_file() else []
    try:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "mmtrain",
                "train",
                RECIPE,
                "--run-dir",
                folder,
                *resume,
                *words,
            ],
            check=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
    finally:
        lock.unlink()


def figures(folder: Path, names: tuple[str, ...]) -> list[tuple[float, float]] | None:
    """Top-1 and top-5 in % of a finished run's evaluations; None while it is not finished."""
    files = [folder / "eval" / f"{name}.json" for name in names]
    if not (folder / "export").is_dir() or not all(file.is_file() for file in files):
        return None
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [(100 * one["top1"], 100 * one["top5"]) for one in results]


def choose(args: argparse.Namespace) -> Iterator[str]:
    """The rows of the choice: one seed, Fx and some concepts held out of training and asked for."""
    split = split_emoji_pairs(Path(args.data), hold_out="fxemoji")
    asked = [
        {"name": "fxemoji", "data": str(split.val), "classes": str(split.classes)},
        {"name": "new", "data": str(split.unseen), "classes": str(split.classes_unseen)},
    ]
    tables = [
        "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in one.items()) + "}"
        for one in asked
    ]
    fixed = {
        "data.train": split.train,
        "eval.zero_shot": f"[{', '.join(tables)}]",
        "eval.retrieval": "[]",
    }
    samples = args.samples or BUDGET // 2
    yield f"| settings, {samples:,} samples, seed 0; top-1 / top-5 | Fx | new concepts |"
    yield "|---|---|---|"
    for name, overrides in choices(samples):
        folder = args.runs / f"choose_{samples}" / re.sub(r"[ ,/]+", "_", name)
        train(folder, fixed | overrides, samples=samples, seed=0, threads=args.threads)
        found = figures(folder, ("fxemoji", "new"))
        cells = ["running"] * 2 if found is None else [_pair(one) for one in found]
        yield f"| {name} | {' | '.join(cells)} |"


def bar(args: argparse.Namespace) -> Iterator[str]:
    """The rows of the bar: every seed and the means, with the recipe's optimizer and with AdamW."""
    unpack_emoji_pairs(Path(args.data))
    names = ("twemoji", "openmoji", "unseen")
    samples = args.samples or BUDGET
    yield "| run, top-1 / top-5 by name | Twemoji | OpenMoji | new concepts |"
    yield "|---|---|---|---|"
    runs = {"mmtrain": {}, "mmtrain, patch 8": FINE, "mmtrain, AdamW": ADAMW}
    for title, overrides in runs.items():
        done = []
        for seed in SEEDS:
            folder = args.runs / f"bar_{samples}" / f"{title.replace(' ', '_')}_{seed}"
            train(folder, overrides, samples=samples, seed=seed, threads=args.threads)
            found = figures(folder, names)
            cells = ["running"] * 3 if found is None else [_pair(one) for one in found]
            yield f"| {title}, seed {seed} | {' | '.join(cells)} |"
            done += [] if found is None else [found]
        if len(done) == len(SEEDS):
            means = [
                tuple(map(fmean, zip(*column, strict=True))) for column in zip(*done, strict=True)
            ]
            yield f"| **{title}, mean** | {' | '.join(f'**{_pair(one)}**' for one in means)} |"


def _pair(found: tuple[float, ...]) -> str:
    return f"{found[0]:.1f} / {found[1]:.1f}"


def main() -> None:
    """Train what is missing of a table, then print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("choose", "bar"))
    parser.add_argument("--samples", type=int, help="seen by a run (bar: 84,480; choose: half)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "emoji_pairs")
    parser.add_argument("--data", default="data/emoji_pairs")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    os.chdir(ROOT)
    rows = list((choose if args.what == "choose" else bar)(args))
    print("\n".join([describe_machine(), "", *rows]))


if __name__ == "__main__":
    main()
