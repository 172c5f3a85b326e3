"""A run is what its recipe says: what may change when it is resumed, and how that is told."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer, load_tokenizer
from mmtrain.errors import UsageError
from mmtrain.recipe import TrainRecipe, load_recipe
from mmtrain.settings.decode import decode, dump_toml, encode
from mmtrain.settings.describe import describe
from mmtrain.settings.read_toml import read_toml
from mmtrain.train.resume import find_changes, read_history
from mmtrain.train.resume_keys import FIXED, FREE, TOLD, kinds_of

ROOT = Path(__file__).parents[2]
RECIPE = "configs/debug_clip.toml"
DATA = "mmtrain/demo/debug/train.tar"
LEAVES = [key.name for key in describe(TrainRecipe) if not key.type.startswith("table")] + [
    "data.captions"
]


def resume(run: Path, *words: str) -> int:
    """Go on with a run by its own recipe -> the exit status."""
    return main(["train", "--resume", "--run-dir", str(run), *words])


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the command said of itself, without the progress."""
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("mmtrain: ") for line in lines if line.startswith("mmtrain: ")]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with checkpoints of 2 and 4."""
    run = tmp_path_factory.mktemp("resume") / "run"
    words = ("--train.steps", "4", "--train.checkpoint_every", "2", "--train.log_every", "1")
    assert main(["train", RECIPE, "--run-dir", str(run), *words]) == 0
    return run


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    """A copy of it, cut short behind step 2: a killed run."""
    copy = tmp_path / "run"
    shutil.copytree(template, copy)
    shutil.rmtree(copy / "checkpoints/step-00000004")
    shutil.rmtree(copy / "export")
    return copy


def files(run: Path) -> dict[str, bytes]:
    """The content of all files, without those that evaluations and pages are."""
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_every_key_is_in_one_table() -> None:
    """A new key must be put into one of mmtrain/train/resume_keys.py: FREE, TOLD or FIXED;
    and what the tables name is there."""
    assert len(LEAVES) > 250
    assert {key: kinds for key in LEAVES if len(kinds := kinds_of(key)) != 1} == {}
    known = {key.name for key in describe(TrainRecipe)}
    assert {key for key in FREE | TOLD | FIXED if key not in known} == set()


FIXED_WORDS = [
    ("data.last", "mask", '"drop"'),
    ("data.augment.horizontal_flip", "0.5", "0.0"),
    ("data.shuffle_group", "1", "32"),
    ("data.lanes", "2", "1"),
    ("data.captions", '{ "txt" = 2.0 }', '{"txt": 1.0}'),
    ("model.vision.patch_dropout", "0.5", "0.25"),
    ("model.vision.transformer.num_layers", "1", "2"),
    ("model.embed_dim", "16", "32"),
    ("train.precision", "bf16", '"fp32"'),
    ("run.seed", "7", "0"),
    ("optim.ema_decay", "0.9", "none"),
    ("lock.vision", "0", "none"),
    ("loss.kind", "siglip", '"clip"'),
    ("tokenizer.clean", "whitespace", '"lower"'),
]


@pytest.mark.parametrize(("key", "value", "old"), FIXED_WORDS, ids=lambda value: value)
def test_another_run_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], key: str, value: str, old: str
) -> None:
    """Key, both values and the remedy, also where changes are wanted; nothing is touched."""
    before = files(run)
    for words in [["--resume-with-changes"]] + [[]] * (key == "data.last"):
        assert resume(run, f"--{key}", value, *words) == 2
        line = said(capsys)[-1]
        assert f"{key} = " in line and f"was saved with {old}" in line, line
        assert "step-00000002" in line and "new run in another --run-dir" in line
    assert files(run) == before


TOLD_WORDS = [
    ("optim.schedule", "constant"),
    ("optim.betas", "[0.8, 0.9]"),
    ("train.steps", "5"),
]


@pytest.mark.parametrize(("key", "value"), TOLD_WORDS, ids=lambda value: value)
def test_a_change_needs_a_word(
    run: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    """Refused with the word that allows it; with it, told and kept."""
    before, recipe = files(run), read_toml(run / "recipe.toml")
    section, name = key.split(".")
    assert resume(run, f"--{key}", value) == 2
    assert "add --resume-with-changes" in (line := said(capsys)[-1]) and f"{key} = " in line
    assert files(run) == before
    words = ["train", str(run), "--resume-with-changes", f"--{key}", value]
    assert main(words) == 0
    (told,) = [line for line in said(capsys) if " -> " in line]
    assert told.startswith(f"{key}: ") and "from step 2 on" in told
    (record,) = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    now = read_toml(run / "recipe.toml")[section][name]
    assert record["step"] == 2 and record["changes"] == {key: [recipe[section][name], now]}
    assert json.loads((run / "run.json").read_text())["changed"]["at step 2"] == record["changes"]
    assert "at step 2" in (run / "report.html").read_text()


def test_another_start_is_told_not_to_count(
    run: Path, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are the checkpoint's, whatever they began with."""
    words = ["--resume-with-changes", "--model.init", f"{template}/export"]
    assert main(["train", str(run), *words]) == 0
    (told,) = [line for line in said(capsys) if " -> " in line]
    assert told.startswith("model.init: ") and told.endswith("(the weights stay the checkpoint's)")


def test_the_history_survives_further_resumes(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that was said once need not be again after a kill; the next one comes behind it."""
    changed = ("--optim.lr", "0.01")
    with monkeypatch.context() as patch:

        def kill(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("mmtrain.train.loop.Loop.run", kill)
        assert resume(run, "--resume-with-changes", *changed) == 130
    capsys.readouterr()
    assert resume(run) == 0  # by the run's own recipe, which has the change
    assert [line for line in said(capsys) if " -> " in line] != []
    assert resume(run, "--resume-with-changes", "--train.steps", "6") == 0
    records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [(one["step"], list(one["changes"])) for one in records] == [
        (2, ["optim.lr"]),
        (4, ["train.steps"]),
    ]
    assert resume(run, "--resume-with-changes") == 0  # nothing changed: as --resume
    assert (run / "history.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 2, "ti',
        b"[1]",
        b"\xff\xfe",
        b'{"step": 2}',
        b'{"step": "2", "time": "", "changes": {}}',
        b'{"step": 2, "time": "", "changes": {"optim.lr": [1]}}',
        b'{"step": 2, "time": "", "changes": {"optim.lr": 1}}',
    ],
)
def test_a_damaged_history_is_named_by_its_line(tmp_path: Path, damage: bytes) -> None:
    whole = b'{"step": 2, "time": "now", "changes": {"optim.lr": [1, 2]}}\n'
    (tmp_path / "history.jsonl").write_bytes(whole + damage + b"\n" + whole)
    with pytest.raises(UsageError, match=r"history\.jsonl:2 is damaged"):
        read_history(tmp_path)


def test_what_is_free_goes_on_with_a_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Logging, evaluation, checkpoints, workers, layout, microbatches."""
    words = {
        "train.log_every": "2",
        "train.checkpoint_every": "3",
        "train.microbatches": "4",
        "train.keep_checkpoints": "5",
        "eval.batch_size": "7",
        "data.workers": "1",
        "parallel.dp_kind": "ddp",
        "data.train": f"./{DATA}",
    }
    assert resume(run, *[word for key, value in words.items() for word in (f"--{key}", value)]) == 0
    told = [line.partition(":")[0] for line in said(capsys) if " -> " in line]
    assert sorted(told) == sorted(words)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3  # steps 1, 2 and 4


def test_equal_values_are_no_change(template: Path) -> None:
    """However they are typed, and whatever the checkpoint's version did not have yet."""
    recipe = load_recipe(template / "recipe.toml")
    saved = json.loads(json.dumps(encode(recipe)))
    assert find_changes(saved, recipe) == []
    saved["data"]["train"] = [saved["data"]["train"]]
    saved["optim"]["ema_decay"] = "none"
    saved["optim"]["clip_norm"] = 1
    saved["optim"]["min_lr_fraction"] = int(saved["optim"]["min_lr_fraction"])
    del saved["data"]["last"], saved["lock"], saved["parallel"]["recompute"], saved["eval"]
    assert find_changes(saved, recipe) == []
    epochs = replace(recipe, train=replace(recipe.train, steps=None, epochs=2))
    assert find_changes(saved, epochs, batches_per_epoch=2) == []
    assert len(find_changes(saved, epochs, batches_per_epoch=3)) == 2


@pytest.mark.parametrize("path", ["model.vision", "optim", "data", ""])
def test_a_key_of_another_version_is_fixed(template: Path, path: str) -> None:
    """What this version cannot honour is not passed over."""
    recipe = load_recipe(template / "recipe.toml")
    saved: Any = json.loads(json.dumps(encode(recipe)))
    section = saved
    for name in path.split(".") if path else ():
        section = section[name]
    section["wonder"] = 3
    (change,) = find_changes(saved, recipe)
    assert change.key == f"{path}.wonder".removeprefix(".") and change.kind == "fixed"


def test_every_changed_leaf_is_found(template: Path) -> None:
    """Each number of the recipe, changed alone, is one change of that key."""
    recipe = load_recipe(template / "recipe.toml")
    count = 0

    def walk(section: dict[str, Any], path: str) -> None:
        nonlocal count
        for name, value in section.items():
            key = f"{path}{name}"
            if isinstance(value, dict) and key != "data.captions":
                walk(value, f"{key}.")
            elif type(value) in (int, float):
                saved = json.loads(json.dumps(encode(recipe)))
                target = saved
                for part in key.split(".")[:-1]:
                    target = target[part]
                target[name] = value + 1
                (change,) = find_changes(saved, recipe)
                assert change.key == key and math.isclose(change.before, value + 1)
                count += 1

    walk(encode(recipe), "")
    assert count > 40


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "train needs a RECIPE"),
        (["--resume"], "train needs a RECIPE"),
        (["--run-dir", "RUN"], "train needs a RECIPE"),
        (["RUN"], "add --resume"),
        (["--resume", "--run-dir", "EMPTY"], "holds no recipe.toml"),
        (["EMPTY", "--resume"], "holds no recipe.toml"),
        (["RUN", "--resume", "--run-dir", "EMPTY"], "two folders"),
        (["nowhere.toml", "--resume"], "nowhere.toml does not exist"),
    ],
    ids=str,
)
def test_what_there_is_to_resume(
    template: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    """One true line where the words name no run."""
    places = {"RUN": str(template), "EMPTY": str(tmp_path)}
    assert main(["train", *[places.get(word, word) for word in words]]) == 2
    (line,) = said(capsys)
    assert told in line


def test_a_moved_run_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its folder alone; the recipe still names the old place."""
    moved = run.rename(run.parent / "moved")
    assert main(["train", str(moved), "--resume"]) == 0
    assert [line for line in said(capsys) if " -> " in line] == []
    assert not run.exists() and (moved / "export").is_dir()
    assert read_toml(moved / "recipe.toml")["run"]["dir"] == str(moved)


def test_steps_without_a_checkpoint_are_compared_too(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed before its first checkpoint, the run's own recipe says what it is."""
    shutil.rmtree(run / "checkpoints")
    assert resume(run, "--data.last", "mask") == 2
    assert "data.last" in said(capsys)[-1]
    assert resume(run) == 0
    assert any("its 4 steps are done again" in line for line in said(capsys))


def test_another_tokenizer_behind_the_same_path(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file may move; the ids that it gives may not change."""
    lower, other = (
        build_tokenizer(TokenizerConfig(context_length=24, clean=clean))
        for clean in ("lower", "whitespace")
    )
    assert lower.fingerprint != other.fingerprint
    lower.save(tmp_path / "moved")
    assert load_tokenizer(tmp_path / "moved").fingerprint == lower.fingerprint
    monkeypatch.setattr("mmtrain.data.text.tokenizer.ids_fingerprint", lambda _: "others")
    assert resume(run) == 2
    assert "the tokenizer's ids = others, but" in said(capsys)[-1]


def test_a_recorded_recipe_resolves_to_itself(template: Path, tmp_path: Path) -> None:
    """What a resume without a recipe reads is what was saved."""
    saved = json.loads((template / "checkpoints/step-00000004/state.json").read_text())["recipe"]
    recipe = load_recipe(template / "recipe.toml")
    assert find_changes(saved, recipe) == []
    again = tmp_path / "again.toml"
    again.write_text(dump_toml(encode(decode(TrainRecipe, saved))))
    assert load_recipe(again) == recipe
