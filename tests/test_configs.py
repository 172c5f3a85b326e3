"""Every recipe in configs/ is read; the debug ones train, through the command line."""

import importlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import mmtrain
from mmtrain.build.resolve import resolve
from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import build_tokenizer
from mmtrain.demo import debug_pairs, unpack_emoji_pairs
from mmtrain.loading import load_decoder, save_model
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


def write_model(folder: Path, recipe_name: str) -> Path:
    """A recipe's model, drawn and not trained, in a folder."""
    recipe = load_recipe(ROOT / f"configs/{recipe_name}.toml")
    tokenizer = build_tokenizer(recipe.tokenizer)
    config = resolve(recipe, tokenizer).model.clip
    preprocess = PreprocessConfig(image_size=config.vision.image_size)
    model = Clip(config).init_weights(0)
    save_model(folder, model=model, tokenizer=tokenizer, preprocess=preprocess)
    return folder


@pytest.fixture(scope="module")
def some_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the recipes that start from a trained model."""
    return write_model(tmp_path_factory.mktemp("model"), "debug_clip")


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


STAGES = {
    "vqa_smolvlm": ("vqa_smolvlm_connector", {"vision", "generate.connector", "generate.decoder"}),
    "vqa_smolvlm_lora": (
        "vqa_smolvlm_connector",
        {"vision", "generate.connector", "generate.decoder"},
    ),
    "vqa_llava": ("vqa_llava_connector", {"generate.connector", "generate.decoder"}),
}
"""Recipes of a second stage, the first one of each, and what trains in the second."""


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_stages_of_a_real_machine_train_small_parts(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Two steps of each, from folders of the same form; what rests is as it was."""
    first, trained = STAGES[name]
    decoder = tmp_path / "decoder"
    decoder.mkdir()
    write_worded(decoder)
    towers = write_model(tmp_path / "towers", "debug_siglip")
    words = ["--model.init", str(towers), "--vqa.generate.init", str(decoder)]
    words += ["--data.train", "mmtrain/demo/debug/dialogues.jsonl", "--data.workers", "0"]
    words += ["--vqa.dialogues.images", "none", "--vqa.dialogues.max_length", "64"]
    words += ["--tokenizer.context_length", "24", "--vqa.data.answer_length", "4"]
    words += ["--vqa.generate.chat", "false"]
    words += ["--train.epochs", "none", "--train.steps", "2", "--train.batch_size", "4"]
    words += ["--train.microbatches", "2", "--train.precision", "fp32"]
    words += ["--vqa.tiles.most", "4"] if "smolvlm" in name else []
    plain = load_decoder(str(decoder))[0].state_dict()
    weights = {f"generate.decoder.{key}": x for key, x in plain.items()}
    tower = mmtrain.load(towers)[0].vision.state_dict()
    weights |= {f"vision.{key}": x for key, x in tower.items() if not key.startswith("head.")}
    for stage, wanted, start in (
        (first, set(), []),
        (name, trained, ["--vqa.init", str(tmp_path / first)]),
    ):
        given = [f"configs/{stage}.toml", *words, *start, "--run.dir", str(tmp_path / stage)]
        assert main(["train", *given]) == 0
        before, weights = weights, load_vqa(tmp_path / stage).model.state_dict()
        moved = {key for key, x in before.items() if not torch.equal(x, weights[key])}
        ends = {key: key.index(".", len("generate.")) for key in moved if key[0] == "g"}
        found = {key[: ends.get(key, len("vision"))] for key in moved}
        assert found - {"generate.places"} == wanted, stage
        capsys.readouterr()
        assert main(["plan", given[0], "--world-size", "2", "--gpu", "h100", *given[1:]]) == 0
        assert "dialogues of 64 tokens with one image" in capsys.readouterr().out
    assert main(["summary", str(tmp_path / name / "recipe.toml")]) == 0


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
    assert main(["train", str(path), "--run-dir", str(run)]) == 0
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
