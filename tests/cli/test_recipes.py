"""The recipes that travel with mmtrain, and the keys of one section, through the command line."""

import re
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.recipe import TrainRecipe
from mmtrain.settings.describe import describe
from mmtrain.settings.shipped import shipped_recipes


def said(words: list[str], capsys: pytest.CaptureFixture[str], *, status: int = 0) -> str:
    assert main(words) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


def test_the_list_names_each_with_its_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(["recipes"], capsys)
    assert all(f"{name} " in told for name in shipped_recipes())
    first = "CLIP ViT-B/32 from scratch on a folder of img2dataset tars"
    assert re.search(rf"clip_vit_b32 +{re.escape(first)}\n", told)
    assert max(map(len, told.split("\n\n")[0].splitlines())) <= 100


@pytest.mark.parametrize("name", ["debug_clip", "debug_clip.toml"])
def test_one_is_copied_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "wrote debug_clip.toml; train it by" in said(["recipes", name], capsys)
    assert main(["train", "debug_clip.toml", "--train.steps", "1", "--run-dir", "run"]) == 0
    capsys.readouterr()
    assert "debug_clip.toml exists already" in said(["recipes", name], capsys, status=2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["debug_clop"], "did you mean debug_clip?"),
        (["wholly_unlike"], "`mmtrain recipes` lists them"),
        (["debug_clip", "--out", "x.txt"], "--out x.txt must end in .toml"),
        (["debug_clip", "--out", "nowhere/x.toml"], "nowhere is no folder; make it"),
        (["--out", "x.toml"], "--out has no effect without NAME"),
    ],
)
def test_mistakes(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in said(["recipes", *words], capsys, status=2)


def test_help_of_every_section_has_its_keys_and_no_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every key of a recipe is in the help of its section, and in that of all."""
    keys = [key for key in describe(TrainRecipe) if "table" not in key.type.split(" of float")[0]]
    everything = said(["train", "--help", "all"], capsys)
    tops = dict.fromkeys(key.name.split(".")[0] for key in keys)
    for top in tops:
        told = said(["train", "--help", top], capsys)
        for key in keys:
            line = f"  {key.name} = {key.type}  ({key.default})\n"
            assert (line in told) == key.name.startswith(f"{top}."), key.name
            assert line in everything


@pytest.mark.parametrize("name", ["model.vision", "[model.vision]"])
def test_a_section_in_a_section(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(["train", "--help", name], capsys)
    assert "model.vision.patch_size" in told and "model.text" not in told


def test_a_list_of_tables_has_help_too(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(["train", "--help", "train.phase"], capsys)
    assert told.startswith("[[train.phase]]") and "\n  train.batch_size" not in told


@pytest.mark.parametrize(
    ("name", "told"),
    [("optm", "did you mean optim?"), ("zzz", "mmtrain train --help lists them")],
)
def test_no_such_section(name: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in said(["train", "--help", name], capsys, status=2)


def test_help_of_training_names_the_sections(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(["train", "--help"], capsys)
    assert "  optim      Optimizer" in told and len(told.splitlines()) < 50


def test_mmtrain_alone_greets(capsys: pytest.CaptureFixture[str]) -> None:
    told = said([], capsys)
    assert "mmtrain recipes debug_clip" in told and "  train " in told


def test_copy_is_a_word_that_may_stand_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "wrote debug_clip.toml" in said(["recipes", "copy", "debug_clip"], capsys)
    assert "wrote b.toml" in said(["recipes", "copy", "debug_clip", "--out", "b.toml"], capsys)
    assert "name one; `mmtrain recipes` lists them" in said(["recipes", "copy"], capsys, status=2)
    told = said(["recipes", "debug_clip", "debug_terms"], capsys, status=2)
    assert "copies one NAME, not debug_clip and debug_terms" in told
