"""The cases: what is drawn from which template, by a number that repeats it."""

import random
import shutil
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from mmtrain.cli import main
from mmtrain.settings.decode import dump_toml
from tests.data.questions.vqa_files import write_set
from tests.fuzz.damage import draw_damage
from tests.fuzz.options import draw_command, draw_folder_reader, draw_reader
from tests.fuzz.recipes import draw_recipe

ROOT = Path(__file__).parents[2]
DEBUG = ROOT / "mmtrain/demo/debug"


class Templates(NamedTuple):
    """What cases start from; each takes a copy of what it changes."""

    recipes: list[Path]
    """Recipes that train in a fraction of a second, with absolute paths."""
    runs: list[Path]
    """What they left behind."""
    files: list[str]
    """Paths of data of every kind."""
    folders: dict[str, Path]
    """What `embed`, `export` and `convert` wrote, by its kind; of the first run."""


def make_templates(
    folder: Path, *, recipes_like: str = "debug_*.toml", is_whole: bool = True
) -> Templates:
    """Two steps of each debug recipe, and of one that answers questions.

    Args:
        folder: where all is made.
        recipes_like: the debug recipes that are wanted.
        is_whole: False: without what `embed`, `export` and `convert` make of a run.
    """
    debug = folder / "debug"
    shutil.copytree(DEBUG, debug)
    recipes = []
    for source in sorted((ROOT / "configs").glob(recipes_like)):
        text = source.read_text().replace('"mmtrain/demo/debug/', f'"{debug}/')
        recipes.append(_write(folder / source.name, tomllib.loads(text)))
    recipes.append(_write(folder / "vqa.toml", _vqa_recipe(folder / "vqa")))
    runs = [folder / f"{path.stem}.run" for path in recipes]
    for path, run in zip(recipes, runs, strict=True):
        assert main(["train", str(path), "--run-dir", str(run)]) == 0
    if not is_whole:
        return Templates(recipes, runs, [], {})
    shard, features = str(debug / "train.tar"), folder / "features"
    assert main(["embed", "--model", str(runs[0]), "--data", shard, "--out", str(features)]) == 0
    files = [*debug.iterdir(), *(folder / "vqa").iterdir(), *recipes, *runs, features]
    folders = {"npy": features} | _folders(folder, runs[0], shard)
    return Templates(recipes, runs, [*map(str, files), str(runs[0] / "export")], folders)


def _folders(folder: Path, run: Path, shard: str) -> dict[str, Path]:
    """Features in several files, and the model in every form that has a towers' reader."""
    parquet = folder / "parquet"
    words = ["--data", shard, "--format", "parquet", "--piece", "20", "--out", str(parquet)]
    assert main(["embed", "--model", str(run), *words]) == 0
    made = {"parquet": parquet}
    for form in ("mmtrain", "open-clip", "hf", "timm"):
        made[form] = folder / form
        assert main(["export", str(run), "--format", form, "--out", str(made[form])]) == 0
    return made


def _write(path: Path, recipe: dict[str, Any]) -> Path:
    recipe["run"] = {"dir": "run"}
    recipe["train"] |= {"checkpoint_every": 1}
    if phases := recipe["train"].get("phase"):  # one step of each of two
        lengths = ("steps", "samples", "epochs")
        kept = [{k: v for k, v in one.items() if k not in lengths} for one in phases[:2]]
        recipe["train"]["phase"] = [{"steps": 1, **one} for one in kept]
    else:
        recipe["train"]["steps"] = 2
    path.write_text(dump_toml(recipe))
    return path


def _vqa_recipe(folder: Path) -> dict[str, Any]:
    """Coloured squares, both heads."""
    files = write_set(folder, num=6)
    core = {"dim": 16, "num_layers": 1, "num_heads": 2}
    questions = {"questions": files["questions"], "annotations": files["annotations"]}
    return {
        "data": {"train": files["data"]},
        "tokenizer": {"context_length": 12},
        "model": {
            "embed_dim": 16,
            "vision": {"image_size": 16, "patch_size": 8, "transformer": core},
            "text": {"transformer": core | {"mask": "causal"}},
        },
        "vqa": {
            "min_count": 1,
            "data": questions | {"per_image": 3},
            "front_door": {"entries": 4},
            "classify": {"fusion": core},
            "generate": {"transformer": core | {"mask": "block"}},
        },
        "train": {"batch_size": 4},
        "eval": {"vqa": [{"name": "own", "data": files["data"], **questions}]},
    }


class Case(NamedTuple):
    """A command line, whose files lie in the folder that it was drawn into."""

    words: list[str]
    """Behind `mmtrain`."""
    disk: int | None = None
    """Bytes of a file at which the disk is full. None: it is not."""


def draw_case(seed: int, number: int, templates: Templates, cwd: Path) -> Case:
    """Case `number`, and in the folder `cwd` the files that it names."""
    rng = random.Random(f"{seed}-{number}")
    kinds = ("recipe", "options", "files", "folders", "disk")
    kind = rng.choices(kinds, weights=(6, 2, 2, 2, 1))[0]
    base = rng.randrange(len(templates.recipes))
    if kind == "recipe":
        drawn = draw_recipe(rng, templates.recipes[base], templates.files)
        (cwd / "recipe.toml").write_bytes(drawn.text)
        return Case(["train", "recipe.toml", *drawn.overrides])
    if kind == "folders":
        base, form = 0, rng.choice(sorted(templates.folders))
        shutil.copytree(templates.folders[form], cwd / "folder")
        draw_damage(rng, cwd / "folder")
    shutil.copytree(templates.runs[base], cwd / "run")
    shutil.copy(templates.recipes[base], cwd / "recipe.toml")
    if kind == "options":
        return Case(draw_command(rng, templates.files))
    if kind == "files":
        draw_damage(rng, cwd / "run")
    disk = rng.choice((0, 100, 2000, 20_000, 200_000)) if kind == "disk" else None
    debug = templates.recipes[0].parent / "debug"
    if kind == "folders":
        return Case(draw_folder_reader(rng, form=form, debug=debug))
    reader = draw_reader(rng, debug=debug)
    return Case(reader, disk)
