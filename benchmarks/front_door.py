"""Does front-door attention (CATT) help where colour and shape correlate in training only?

For every seed a model without it is trained on the confounded set of tools/make_shapes_vqa.py. Then
three go on from its weights, for the same steps on the same data in the same order:

    without    as it was
    matched    the same module, its dictionaries of one entry (so cross-sample attention can say but
               one thing) and its feed-forwards widened to the same number of parameters
    with       front-door attention, dictionaries filled by k-means over the trained features

`val` correlates as training does, `test` does not. The tables have mean and standard deviation over
the seeds, and the differences seed by seed. A run that is there already is not trained again.

    python benchmarks/front_door.py --runs runs/front_door --out benchmarks/results/front_door.md
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from machine import describe_machine

from mmtrain.loading.vqa import load_vqa

ROOT = Path(__file__).parents[1]
ARMS = ("without", "matched", "with")
KINDS = ("colour", "shape", "exist", "size", "count", "relation")
# Two-sided 95 % quantile of Student's t by degrees of freedom.
_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def python(*words: object) -> None:
    """Run another python to its end; it must succeed."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def children_seconds() -> float:
    """Processor time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_data(args: argparse.Namespace) -> Path:
    """The confounded set."""
    data = (args.runs / "data").resolve()
    if not data.exists():
        options = ["--correlation", args.correlation, "--image-size", 48]
        sizes = ["--train", args.train, "--val", 300, "--test", 1000]
        python("tools/make_shapes_vqa.py", "--out", data, *options, *sizes)
    return data


def matched_ff_dim(dim: int, entries: int) -> int:
    """The feed-forward's width that makes up for all but one entry: two matrices of `dim` and a
    bias each."""
    return round(4 * dim + (entries - 1) * dim / (2 * dim + 1))


def train(args: argparse.Namespace, name: str, seed: int, epochs: int, *options: object) -> Path:
    """A run; one that has its export is left as it is."""
    run = (args.runs / f"{name}-{seed}").resolve()
    if (run / "export/config.json").is_file():
        return run
    data = make_data(args)
    words = ["-m", "mmtrain", "train", "configs/vqa_shapes.toml", "--run-dir", run]
    words += ["--data.train", f"{data}/train/*.tar", "--run.seed", seed, "--train.epochs", epochs]
    parts = [f'{{name = "{part}", data = "{data}/{part}/*.tar"}}' for part in ("val", "test")]
    words += ["--train.batch_size", 32, "--train.log_every", 50]
    words += ["--eval.vqa", f"[{', '.join(parts)}]", *options]
    began = children_seconds()
    python(*words)
    print(f"{run.name}: {children_seconds() - began:.0f} s of processor time", flush=True)
    return run


def train_all(args: argparse.Namespace) -> dict[str, list[Path]]:
    """All runs, by arm and seed."""
    runs: dict[str, list[Path]] = {"start": []} | {arm: [] for arm in ARMS}
    door = ["--vqa.front_door.num_layers", 1]
    options = {
        "without": [],
        "matched": [
            *door, "--vqa.front_door.entries", 1,
            "--vqa.front_door.ff_dim", matched_ff_dim(64, args.entries),
        ],
        "with": [*door, "--vqa.front_door.entries", args.entries],
    }  # fmt: skip
    for seed in range(args.seeds):
        start = train(args, "start", seed, args.epochs)
        runs["start"].append(start)
        for arm in ARMS:
            # Other draws than the start's, the same for all three.
            more = ["--vqa.init", start, *options[arm]]
            runs[arm].append(train(args, arm, seed, args.more_epochs, *more))
    return runs


def read(run: Path, part: str, kind: str | None = None) -> float:
    """An accuracy of a run, of one kind of question or of all."""
    result = json.loads((run / "eval" / f"{part}.json").read_text())
    return 100 * (result["accuracy"] if kind is None else result["per_question_type"][kind])


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over the seeds."""
    return f"{statistics.mean(values):{sign}.2f} ± {statistics.stdev(values):.2f}"


def difference(first: Sequence[float], second: Sequence[float]) -> str:
    """Seed by seed, with the half width of its 95 % interval; bold where that leaves out 0."""
    each = [b - a for a, b in zip(first, second, strict=True)]
    mean = statistics.mean(each)
    half = _T95[len(each) - 1] * statistics.stdev(each) / len(each) ** 0.5
    text = f"{mean:+.2f} ± {half:.2f}"
    return f"**{text}**" if abs(mean) > half else text


def tables(runs: dict[str, list[Path]]) -> list[str]:
    """The markdown: accuracies, then differences."""
    lines = ["| model | parameters | val (confounded) | test (not) |", "|---|---|---|---|"]
    for arm, folders in runs.items():
        size = sum(x.numel() for x in load_vqa(folders[0]).model.state_dict().values())
        cells = [spread([read(run, part) for run in folders]) for part in ("val", "test")]
        lines.append(f"| {arm} | {size:,} | {' | '.join(cells)} |")
    lines += ["", f"| test, by kind | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
    for arm, folders in runs.items():
        cells = [spread([read(run, "test", kind) for run in folders]) for kind in KINDS]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    heads = ["val", "test", *KINDS]
    lines += ["", f"| difference on | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    places = [("val", None), ("test", None), *(("test", kind) for kind in KINDS)]
    for first, second in (("without", "with"), ("matched", "with"), ("without", "matched")):
        cells = [
            difference(*([read(run, *place) for run in runs[arm]] for arm in (first, second)))
            for place in places
        ]
        lines.append(f"| {second} - {first} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/front_door"), help="a folder")
    parser.add_argument("--seeds", type=int, default=3, help="2 to 10 (default: 3)")
    parser.add_argument("--train", type=int, default=3000, help="pictures (default: 3000)")
    parser.add_argument("--correlation", type=float, default=0.9)
    parser.add_argument("--entries", type=int, default=64, help="of each dictionary")
    parser.add_argument("--epochs", type=int, default=5, help="of the start (default: 5)")
    parser.add_argument("--more-epochs", type=int, default=3, help="of each arm (default: 3)")
    parser.add_argument("--out", type=Path, help="markdown file to write the tables to")
    args = parser.parse_args()
    lines = [
        "# Front-door attention where a correlation breaks",
        "",
        f"{describe_machine()}. {args.seeds} seeds; {args.train} pictures in which colour tells "
        f"shape with chance {args.correlation}; {args.epochs} epochs without, then "
        f"{args.more_epochs} of each arm; dictionaries of {args.entries} entries. Per cent right: "
        "mean ± standard deviation over the seeds; differences seed by seed: mean ± half a 95 % "
        "interval (Student's t), bold where that leaves out 0.",
        "",
        *tables(train_all(args)),
    ]
    print("\n".join(lines))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
