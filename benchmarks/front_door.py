"""Does front-door attention (CATT) help where something gives answers away in training only?

The pictures are those that a plain model sees through (configs/vqa_shapes.toml), the kinds of
questions those that a confounder of tools/make_shapes_vqa.py touches. By setting, `colour:R`
(colour tells shape with chance R) or `wording:R` (a question's wording its answer), and by seed, a
model without it is trained on the confounded set. Then these go on from its weights, for the same
steps on the same data in the same order:

    without    as it was
    matched    the same module, its dictionaries of one entry (so cross-sample attention can say but
               one thing) and its feed-forwards widened to the same number of parameters
    with       front-door attention, dictionaries filled by k-means over the trained features
    image      the same for the image's features alone
    question   the same for the question's features alone
    encoder    front doors within the vision tower, behind each of its blocks, and nowhere else
    first      goes on from a start of its own, which had front doors from the first step on
    outside    as `with`, its dictionaries of what a model makes of other pictures, in which nothing
               tells anything; that model had the same seed and as many steps

`--arms` takes some of them. `val` is confounded as training is, `test` is not. `colour:0` has
nothing to mend: it is trained without alone, and tells what there is to win. A run that is there
already is not trained again, and the tables, of all seeds that are complete, are written anew after
each.

    python benchmarks/front_door.py --runs runs/front_door --out benchmarks/results/front_door.md
"""

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tools/, which is no package's

from machine import describe_machine
from seeds import POWER, compare_seeds, scores
from torch import nn

from mmtrain.loading.vqa import load_vqa, save_vqa
from mmtrain.nn.front_door import FrontDoor
from mmtrain.recipe import load_recipe
from mmtrain.run import train_command
from tools.make_shapes_vqa import main as draw_shapes

ROOT = Path(__file__).parents[1]
ARMS = ("without", "matched", "with", "image", "question", "encoder", "first", "outside")
PAIRS = (
    ("without", "with"),
    ("matched", "with"),
    ("without", "matched"),
    *(("without", arm) for arm in ARMS[3:]),
    ("matched", "encoder"),
    ("with", "encoder"),
    ("matched", "outside"),
    ("with", "outside"),
)
KINDS = ("colour", "shape", "exist", "count")
SETTINGS = ("colour:0", "colour:0.7", "colour:0.9", "colour:0.97", "wording:0.9")
_FLAGS = {"colour": "--correlation", "wording": "--wording"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained, where and how long."""

    runs: Path
    arms: Sequence[str]
    seeds: int
    train: int
    entries: int
    steps: int
    more_steps: int


def make_data(plan: Plan, setting: str) -> Path:
    """The set of a setting."""
    kind, _, chance = setting.partition(":")
    data = (plan.runs / f"data-{kind}-{chance}").resolve()
    if not (data / "test").exists():
        sizes = ["--train", str(plan.train), "--val", "200", "--test", "1000"]
        words = ["--out", str(data), "--kinds", *KINDS, *sizes, _FLAGS[kind], chance]
        assert draw_shapes(words) == 0
    return data


def matched_ff_dim(dim: int, entries: int) -> int:
    """The feed-forward's width that makes up for all but one entry: two matrices of `dim` and a
    bias each."""
    return round(4 * dim + (entries - 1) * dim / (2 * dim + 1))


def run_of(plan: Plan, setting: str, arm: str, seed: int) -> Path:
    """The folder of a run."""
    return (plan.runs / f"{setting.replace(':', '-')}-{arm.replace(' ', '_')}-{seed}").resolve()


def is_complete(run: Path) -> bool:
    """Whether it ended; its evaluations and its export are then there."""
    return (run / "export/config.json").is_file() and (run / "eval/test.json").is_file()


def train(plan: Plan, setting: str, arm: str, seed: int, *options: object) -> Path:
    """A run; one that is complete is left as it is, the rest of one that was broken off goes."""
    run = run_of(plan, setting, arm, seed)
    if is_complete(run):
        return run
    shutil.rmtree(run, ignore_errors=True)
    data = make_data(plan, setting)
    parts = [f'{{name = "{part}", data = "{data}/{part}/*.tar"}}' for part in ("val", "test")]
    words: list[object] = ["--data.train", f"{data}/train/*.tar", "--run.seed", seed]
    words += ["--vqa.data.per_image", len(KINDS), "--train.log_every", 50]
    words += ["--eval.vqa", f"[{', '.join(parts)}]", "--eval.fast", "true", *options]
    began = time.process_time()
    recipe = load_recipe(
        ROOT / "configs/vqa_shapes.toml", [str(word) for word in words], run_dir=run
    )
    train_command(recipe=recipe, resume=None)
    print(f"{run.name}: {time.process_time() - began:.0f} s of processor time", flush=True)
    return run


def train_seed(plan: Plan, setting: str, seed: int) -> None:
    """The starts, and what goes on from them."""
    door = ["--vqa.front_door.num_layers", 1, "--vqa.front_door.entries"]
    doors = [*door, plan.entries]
    options = {
        "without": [],
        "matched": [*door, 1, "--vqa.front_door.ff_dim", matched_ff_dim(64, plan.entries)],
        "with": doors,
        "image": [*doors, "--vqa.front_door.places", '["image"]'],
        "question": [*doors, "--vqa.front_door.places", '["question"]'],
        "encoder": [*doors, "--vqa.front_door.places", '["vision"]'],
        "first": doors,
        "outside": doors,
    }
    steps = ["--train.steps", plan.steps]
    start = train(plan, setting, "start", seed, *steps)
    for arm in arms_of(plan, setting):
        begun = start
        if arm == "first":
            begun = train(plan, setting, "start with front doors", seed, *steps, *doors)
        elif arm == "outside":
            other = train(plan, "colour:0", "start", seed, *steps)
            one = ["--vqa.init", other, "--train.steps", 1, *doors]
            seen = train(plan, "colour:0", "start with dictionaries", seed, *one)
            begun = with_doors_of(start, seen, run_of(plan, setting, "start outside", seed))
        more = ["--vqa.init", begun, "--train.steps", plan.more_steps, *options[arm]]
        train(plan, setting, arm, seed, *more)


def with_doors_of(start: Path, other: Path, folder: Path) -> Path:
    """A model of the weights of `start` and the dictionaries of `other`, whose doors are shut."""
    begun, doors = load_vqa(start), load_vqa(other).model
    doors.load_state_dict(begun.model.state_dict(), strict=False)
    for module in doors.modules():
        if isinstance(module, FrontDoor):
            nn.init.zeros_(module.fuse.weight)
            nn.init.zeros_(module.fuse.bias)
    save_vqa(folder, replace(begun, model=doors))
    return folder


def arms_of(plan: Plan, setting: str) -> Sequence[str]:
    """What goes on from the start."""
    return ("without",) if setting == "colour:0" else plan.arms


def results(plan: Plan, setting: str, arm: str, part: str) -> list[Path]:
    """Those of the seeds of which all arms are complete."""
    done = [
        seed
        for seed in range(plan.seeds)
        if all(is_complete(run_of(plan, setting, one, seed)) for one in arms_of(plan, setting))
    ]
    return [run_of(plan, setting, arm, seed) / "eval" / f"{part}.json" for seed in done]


def spread(files: Sequence[Path], kind: str | None = None) -> str:
    """Mean and standard deviation over the seeds, in per cent."""
    each = [100 * float(mean) for mean in scores(files, kind)[0].mean(1)]
    return f"{statistics.mean(each):.1f} ± {statistics.stdev(each):.1f}"


def tables(plan: Plan, settings: Sequence[str]) -> Iterator[str]:
    """The markdown: accuracies, then differences."""
    heads = ["val", "test", *(f"test, {kind}" for kind in KINDS)]
    places = [("val", None), ("test", None), *(("test", kind) for kind in KINDS)]
    told = [s for s in settings if len(results(plan, s, "without", "test")) > 1]
    yield f"| setting | seeds | model | parameters | {' | '.join(heads)} |"
    yield f"|---|---|---|---|{'---|' * len(heads)}"
    for setting in told:
        for arm in ("start", *arms_of(plan, setting)):
            files = [results(plan, setting, arm, part) for part, _ in places]
            state = load_vqa(files[0][0].parents[1]).model.state_dict()
            cells = [spread(one, kind) for one, (_, kind) in zip(files, places, strict=True)]
            size = sum(x.numel() for x in state.values())
            yield f"| {setting} | {len(files[0])} | {arm} | {size:,} | {' | '.join(cells)} |"
    for first, second in PAIRS:
        if first not in plan.arms or second not in plan.arms:
            continue
        yield ""
        yield f"| {second} - {first} | {' | '.join(heads)} |"
        yield f"|---|{'---|' * len(heads)}"
        for setting in told:
            if not {first, second} <= {*arms_of(plan, setting)}:
                continue
            cells = [
                str(
                    compare_seeds(*(results(plan, setting, a, part) for a in (first, second)), kind)
                )
                for part, kind in places
            ]
            yield f"| {setting} | {' | '.join(cells)} |"


def write(plan: Plan, settings: Sequence[str], out: Path | None) -> None:
    """Print the tables, and write them."""
    lines = [
        "# Front-door attention where a confounder breaks",
        "",
        f"{describe_machine()}. {plan.train} pictures; {plan.steps} steps without, then "
        f"{plan.more_steps} of each arm; dictionaries of {plan.entries} entries. Per cent right, "
        "mean ± standard deviation over the seeds. A difference: mean ± half of the 95 % interval "
        "over the seeds (paired t; bold where it leaves out 0), in brackets the 95 % interval over "
        "the pictures (bootstrap over pictures, all seeds' answers pooled), then the smallest true "
        f"difference that the t-test would have found with a chance of {POWER:.0%}.",
        "",
        *tables(plan, settings),
    ]
    print("\n".join(lines), flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join([*lines, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/front_door"), help="a folder")
    parser.add_argument(
        "--settings", nargs="+", default=SETTINGS, metavar="WHAT:CHANCE",
        help=f"in this order (default: {' '.join(SETTINGS)})",
    )  # fmt: skip
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="default: all")
    parser.add_argument("--seeds", type=int, default=5, help="2 or more (default: 5)")
    parser.add_argument("--train", type=int, default=4000, help="pictures (default: 4000)")
    parser.add_argument("--entries", type=int, default=64, help="of each dictionary")
    parser.add_argument("--steps", type=int, default=400, help="of the start (default: 400)")
    parser.add_argument("--more-steps", type=int, default=200, help="of each arm (default: 200)")
    parser.add_argument("--out", type=Path, help="markdown file to write the tables to")
    parser.add_argument("--only-table", action="store_true", help="train nothing")
    args = parser.parse_args()
    names = ("runs", "arms", "seeds", "train", "entries", "steps", "more_steps")
    plan = Plan(**{name: getattr(args, name) for name in names})
    for setting in () if args.only_table else args.settings:
        for seed in range(plan.seeds):
            train_seed(plan, setting, seed)
            if seed > 0:
                write(plan, args.settings, args.out)
    write(plan, args.settings, args.out)


if __name__ == "__main__":
    main()
