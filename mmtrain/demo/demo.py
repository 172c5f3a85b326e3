"""The demo: a small CLIP that learns emoji from eight designers and is asked about two others."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from mmtrain.demo.emoji_pairs import unpack_emoji_pairs
from mmtrain.errors import UsageError
from mmtrain.recipe import load_recipe
from mmtrain.run import train_command
from mmtrain.settings.layers import laid_over, read_layers
from mmtrain.settings.shipped import shipped_recipes
from mmtrain.train.metrics import METRICS_FILE, read_metrics
from mmtrain.train.run_folder import RECIPE_FILE

DATA_DIR = Path("data/emoji_pairs")
"""Where the recipes look for its shards, from the working directory."""

_FINE, _COARSE = "clip_emoji_fine", "clip_emoji"
_NOTE = (
    "Top-1 / top-5 in %, prompts are the emoji's names. No drawing by Twemoji or OpenMoji was "
    "trained on, nor any of the new concepts. open_clip 3.3: its own model and loss on the same "
    "pairs, 84,480 samples seen, AdamW at the best of four learning rates; beside it with Muon, "
    "put in by us. Another seed moves its figures by up to 1.5."
)


@dataclass(frozen=True, kw_only=True)
class Rival:
    """What open_clip reached on one set of drawings: (top-1, top-5) in %."""

    title: str
    """The drawings, for people."""
    adamw: tuple[float, float]
    """As it comes."""
    muon: tuple[float, float]
    """With Muon for its hidden matrices."""


RIVALS = {
    "twemoji": Rival(title="Twemoji", adamw=(7.5, 20.7), muon=(18.1, 36.8)),
    "openmoji": Rival(title="OpenMoji", adamw=(1.0, 3.0), muon=(2.2, 6.8)),
    "unseen": Rival(title="new concepts", adamw=(7.6, 21.0), muon=(10.0, 25.2)),
}
"""By the name of the evaluation in the recipes."""


def run_demo(
    *, out: Path, overrides: list[str], fresh: bool = False, data_only: bool = False
) -> None:
    """`mmtrain demo`: unpack EmojiPairs, train a CLIP on it into `out`, show what it learnt.

    A demo that was cut short goes on from its last checkpoint; one that is done is evaluated again.

    Args:
        out: the run folder.
        overrides: words `--section.key value` over the recipe.
        fresh: remove the run in `out` first.
        data_only: stop when the shards are unpacked.

    Raises:
        UsageError: a folder cannot be written, or `out` holds what is no run of the demo.
    """
    if not data_only:
        if fresh:
            _remove_run(out)
        elif _holds_run(out):
            _refuse_other(out)
    unpack_emoji_pairs(DATA_DIR)
    print(f"EmojiPairs is in {DATA_DIR}", flush=True)
    if data_only:
        return
    try:
        resume = "with changes" if _holds_run(out) else None
        # One that has begun goes on by its own: an older version's demo, or another machine's.
        path = recipe_path() if resume is None else out / RECIPE_FILE
        told = f"{path.stem} (mmtrain recipes {path.stem})" if resume is None else str(path)
        print(f"training by the recipe {told}", flush=True)
        recipe = load_recipe(path, overrides, run_dir=out, resumes=resume is not None)
        train_command(recipe=recipe, resume=resume)
    except SystemExit:
        print("mmtrain: the demo goes on when it is started again", file=sys.stderr)
        raise
    _show(out)


def recipe_path() -> Path:
    """The demo's recipe: with patches of 8 in bf16 where that is fast, else of 16 in fp32, for some
    minutes less."""
    cpu, has_gpu = torch.cpu, torch.cuda.is_available()
    fast = has_gpu or cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported()
    return shipped_recipes()[_FINE if fast else _COARSE]


def results_table(results: dict[str, dict[str, Any]]) -> Table:
    """Chance, open_clip and this run side by side; `results` are zero-shot JSONs by name."""
    table = Table(title="Emoji told by their names", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("drawings", no_wrap=True)
    for heading in ("classes", "chance", "open_clip", "+ Muon"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("this run", justify="right", no_wrap=True, style="bold")
    for name, rival in RIVALS.items():
        if name in results:
            one = results[name]
            chance = (100 / one["num_classes"], 500 / one["num_classes"])
            table.add_row(
                rival.title,
                f"{one['num_classes']:,}",
                _pair(chance, digits=2),
                _pair(rival.adamw),
                _pair(rival.muon),
                _pair((100 * one["top1"], 100 * one["top5"])),
            )
    return table


def _show(run: Path) -> None:
    files = [run / "eval" / f"{name}.json" for name in RIVALS]
    results = {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()
    }
    console = Console()
    console.print(results_table(results))
    console.print(f"{_NOTE} This run: {_samples_seen(run):,} samples seen.", highlight=False)
    print(f"The run, its curves, its best and worst finds:  {run / 'report.html'}")
    print(f'The model:  model, preprocess, tokenizer = mmtrain.load("{run}")')
    # As it was called: make's mmtrain is on no PATH.
    program = sys.argv[0] if Path(sys.argv[0]).name == "mmtrain" else "mmtrain"
    shards = " ".join(str(DATA_DIR / f"val_{design}.tar") for design in ("twemoji", "openmoji"))
    print(f"Play with it:  {program} serve --model {run} --index {shards}")


def _samples_seen(run: Path) -> int:
    return read_metrics(run / METRICS_FILE)[-1]["samples_seen"]


def _pair(figures: tuple[float, float], *, digits: int = 1) -> str:
    return " / ".join(f"{figure:.{digits}f}" for figure in figures)


def _holds_run(folder: Path) -> bool:
    return (folder / RECIPE_FILE).is_file()


def _refuse_other(folder: Path) -> None:
    """Refuse a run of another recipe, which would go on, or be removed, as if it were the demo."""
    data: dict[str, Any] = {}
    for layer in read_layers(folder / RECIPE_FILE):
        data = laid_over(data, layer)
    judged = {one.get("name") for one in data.get("eval", {}).get("zero_shot", ())}
    if not judged & RIVALS.keys() and DATA_DIR.name not in str(data.get("data")):
        raise UsageError(
            f"out = {folder} holds a run that is no demo; name another folder, or go on with it "
            f"by mmtrain train {folder} --resume"
        )


def _remove_run(folder: Path) -> None:
    """Remove a run; nothing else that a slip of the keyboard may name."""
    if not folder.exists():
        return
    if not _holds_run(folder) and any(folder.iterdir()):
        raise UsageError(
            f"out = {folder} holds no run, so --fresh does not remove it; name another folder"
        )
    if _holds_run(folder):
        _refuse_other(folder)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise UsageError(f"out = {folder} cannot be removed ({error.strerror})") from error
