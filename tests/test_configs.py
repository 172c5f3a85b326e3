"""Every recipe in configs/ is read; the debug ones train, through the command line."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mmtrain
from mmtrain.build.resolve import resolve
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import build_tokenizer
from mmtrain.demo import debug_pairs, unpack_emoji_pairs
from mmtrain.loading import save_model
from mmtrain.loading.vqa import load_vqa
from mmtrain.models import Clip
from mmtrain.recipe import TrainRecipe, load_recipe
from mmtrain.settings.decode import decode, dump_toml, encode
from mmtrain.settings.describe import describe
from mmtrain.settings.read_toml import read_toml
from tests.interop.decoder_folders import write_worded

ROOT = Path(__file__).parents[1]
# finetune.toml begins with a model's folder: tests/train/test_finetune.py reads and trains it.
CONFIGS = sorted(set((ROOT / "configs").glob("*.toml")) - {ROOT / "configs/finetune.toml"})
DEBUG_CONFIGS = [path for path in CONFIGS if path.stem.startswith("debug")]
OFTEN = ("debug_clip",)
"""What trains in the short tier; the others in the long one."""


def name_of(path: Path) -> str:
    return path.stem


def run_mmtrain(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`python -m mmtrain` with one thread."""
    return subprocess.run(
        [sys.executable, "-m", "mmtrain", *words],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def some_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the recipes that start from a trained model."""
    folder = tmp_path_factory.mktemp("model")
    recipe = load_recipe(ROOT / "configs/debug_clip.toml")
    tokenizer = build_tokenizer(recipe.tokenizer)
    config = resolve(recipe, tokenizer).model.clip
    preprocess = PreprocessConfig(image_size=config.vision.image_size)
    save_model(folder, model=Clip(config), tokenizer=tokenizer, preprocess=preprocess)
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_recipe_loads_and_survives_being_resolved(path: Path, some_model: Path, tmp_path: Path):
    table, starts = read_toml(path), []
    if "init" in table["model"]:
        starts += ["--model.init", str(some_model)]
    if "init" in table.get("vqa", {}).get("generate", {}):
        write_worded(tmp_path)
        starts += ["--vqa.generate.init", str(tmp_path)]
    recipe = load_recipe(path, starts)
    assert recipe.run.dir == f"runs/{path.stem}"
    assert decode(TrainRecipe, encode(recipe)) == recipe
    assert decode(TrainRecipe, tomllib.loads(dump_toml(encode(recipe)))) == recipe


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_recipe_says_what_it_is_and_how_to_start_it(path: Path):
    comment = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert f"mmtrain train configs/{path.name}" in comment


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_recipe_reads_below_data_or_from_the_package(path: Path):
    for name in strings_in(read_toml(path)):
        if name.endswith((".tar", ".json", ".model")):
            assert name.startswith(("data/", "mmtrain/demo/"))
        if name.startswith("mmtrain/"):
            assert (ROOT / name).is_file()


def strings_in(value: Any) -> list[str]:
    """Every string in a TOML table."""
    if isinstance(value, dict):
        return strings_in(list(value.values()))
    if isinstance(value, list):
        return [text for one in value for text in strings_in(one)]
    return [value] if isinstance(value, str) else []


def test_every_key_is_documented():
    undocumented = [key.name for key in describe(TrainRecipe) if not key.doc]
    assert not undocumented


def test_the_demo_recipe_names_what_unpacking_writes(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = unpack_emoji_pairs(Path("data/emoji_pairs"))
    recipe = read_toml(ROOT / "configs/clip_emoji.toml")
    assert recipe["data"]["train"] == pairs.train
    zero_shot = {one["name"]: one for one in recipe["eval"]["zero_shot"]}
    for name, data, classes in (
        ("twemoji", pairs.val_twemoji, pairs.classes_seen),
        ("openmoji", pairs.val_openmoji, pairs.classes_seen),
        ("unseen", pairs.unseen, pairs.classes_unseen),
    ):
        assert zero_shot[name]["data"] == str(data) and data.is_file()
        assert zero_shot[name]["classes"] == str(classes) and classes.is_file()


@pytest.mark.parametrize(
    "path",
    [
        path if name_of(path) in OFTEN else pytest.param(path, marks=pytest.mark.slow)
        for path in DEBUG_CONFIGS
    ],
    ids=name_of,
)
def test_a_debug_recipe_trains(path: Path, tmp_path: Path):
    run = tmp_path / "run"
    done = run_mmtrain("train", str(path), "--run-dir", str(run))
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(path)
    facts = json.loads((run / "run.json").read_text())
    steps, size = facts["total_steps"], recipe.train.batch_size
    assert recipe.train.steps in (None, steps)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    if not recipe.train.phase:
        assert rows[-1]["samples_seen"] == steps * size
    losses = [row["loss"] for row in rows]
    assert sum(losses[-4:]) < sum(losses[:4]), "it does not learn"
    for name in ("recipe.toml", "report.html", f"checkpoints/step-{steps:08d}"):
        assert (run / name).exists(), name
    if recipe.vqa is None:
        model, _, tokenizer = mmtrain.load(run)
        assert model.encode_text(tokenizer(["a red circle"])).shape == (1, recipe.model.embed_dim)
    else:
        assert load_vqa(run).model.config.reads_dialogues
    # What the folder records can be run again.
    assert load_recipe(run / "recipe.toml").train == recipe.train


def test_the_debug_shard_is_the_one_that_the_package_names():
    recipe = load_recipe(ROOT / "configs/debug_clip.toml")
    assert isinstance(recipe.data.train, str)
    assert (ROOT / recipe.data.train).samefile(debug_pairs().train)


def test_settings_of_the_emoji_benchmark_fit_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """What benchmarks/emoji_pairs.py lays over configs/clip_emoji.toml is read."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("emoji_pairs")
    settings = [*dict(bench.choices(bench.BUDGET)).values(), bench.ADAMW, bench.FINE]
    assert len(settings) > 10
    for overrides in settings:
        words = [word for key, value in overrides.items() for word in (f"--{key}", value)]
        assert load_recipe(bench.RECIPE, words)
    # The demo's recipe is what the table calls patch 8.
    fine = load_recipe(ROOT / "configs/clip_emoji_fine.toml", ["--run.dir", "runs/clip_emoji"])
    words = [word for key, value in bench.FINE.items() for word in (f"--{key}", value)]
    assert fine == load_recipe(bench.RECIPE, words)
