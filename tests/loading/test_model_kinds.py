"""A model of another kind than a command takes is told by who takes it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.interop.model_kind import kind_of
from tests.interop.decoder_folders import write_peer
from tests.tasks.test_vqa_run import write_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that answers, a CLIP in three forms, an adapter, a decoder and a tower of timm's."""
    base = tmp_path_factory.mktemp("kinds")
    recipe = write_recipe(base)
    assert main(["train", str(recipe), "--run-dir", str(base / "vqa"), "--train.steps", "1"]) == 0
    words = ["--eval.zero_shot", "[]", "--eval.retrieval", "[]", "--train.steps", "1"]
    words += ["--data.train", "synthetic:64", "--data.captions", "{txt = 1.0}"]
    clip = ["train", str(ROOT / "configs/debug_clip.toml"), "--run-dir", str(base / "clip"), *words]
    assert main(clip) == 0
    adapted = ["--model.init", str(base / "clip"), "--peft.kind", "lora"]
    assert main([*clip[:3], str(base / "lora"), *words, *adapted]) == 0
    for form in ("open-clip", "hf"):
        words = ["--out", str(base / form), "--format", form]
        assert main(["export", str(base / "clip"), *words]) == 0
    write_peer("smollm2", base / "decoder")
    (base / "timm").mkdir()
    (base / "timm/config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    return base


def commands(folder: Path, model: str, out: Path) -> dict[str, tuple[str, list[str]]]:
    """What takes a model -> the kind that it takes, the words."""
    data, classes = ["synthetic:8"], ["--classes", "imagenet"]
    asked = ["--questions", str(folder / "questions.json")]
    asked += ["--annotations", str(folder / "annotations.json")]
    picture = str(sorted((folder / "images").iterdir())[0])
    debug, answers = str(ROOT / "configs/debug_clip.toml"), str(folder / "recipe.toml")
    result, one = ["--out", str(out / "r.json")], ["--model", model]
    run = ["--run-dir", str(out / "run")]
    sets = ["--train", *data, "--test", *data, *classes, *result]
    return {
        "eval zero-shot": ("clip", ["eval", "zero-shot", *one, "--data", *data, *classes, *result]),
        "eval retrieval": ("clip", ["eval", "retrieval", *one, "--data", *data, *result]),
        "eval knn": ("clip or vqa", ["eval", "knn", *one, *sets]),
        "eval linear-probe": ("clip or vqa", ["eval", "linear-probe", *one, *sets]),
        "embed": ("clip or vqa", ["embed", *one, "--data", *data, "--out", str(out / "e")]),
        "serve": ("clip or vqa", ["serve", *one, "--port", "0"]),
        "export": ("clip or vqa", ["export", model, "--out", str(out / "x")]),
        "convert": ("clip or vqa", ["convert", model, str(out / "x")]),
        "model.init": ("clip", ["train", debug, *run, "--model.init", model]),
        "model.init beside [vqa]": ("clip", ["train", answers, *run, "--model.init", model]),
        "model.vision_init": ("tower", ["train", debug, *run, "--model.vision_init", model]),
        "vqa.init": ("vqa", ["train", answers, *run, "--vqa.init", model]),
        "ask": ("vqa", ["ask", *one, "--image", picture, "--question", "what?"]),
        "eval vqa": (
            "vqa",
            ["eval", "vqa", *one, "--data", str(folder / "images"), *asked, *result],
        ),
        "generate": ("decoder", ["generate", *one, "--prompt", "a"]),
    }


HOLDS = {"vqa": "vqa", "vqa/export": "vqa", "clip": "clip", "clip/export": "clip"} | {
    "open-clip": "clip", "hf": "clip", "decoder": "decoder", "timm": "tower",
    "lora/adapter": "adapter",
}  # fmt: skip
TOLD = {
    "vqa": "mmtrain exported it, with questions; use `mmtrain ask` or `eval vqa`",
    "clip": "it holds a CLIP, which `mmtrain eval zero-shot`",
    "decoder": "it holds a decoder, which `mmtrain generate`",
    "tower": "it holds an image tower of timm's, from which a recipe starts by model.vision_init",
    "adapter": "it holds an adapter alone, from which a recipe with [peft] goes on by peft.init",
}


@pytest.mark.parametrize("name", HOLDS)
def test_a_model_of_another_kind_is_told_by_who_takes_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    held = HOLDS[name]
    assert kind_of(folder / name) == held
    for command, (wanted, words) in commands(folder, str(folder / name), tmp_path).items():
        if held in wanted.split(" or "):
            continue
        assert main(words) == 2, command
        (line,) = capsys.readouterr().err.splitlines()
        key = command.split()[0] if "init" in command else "--model"
        key = {"export": "RUN", "convert": "SRC", "summary": "RECIPE|PATH|NAME"}.get(command, key)
        assert f"{key} = {folder / name} is" in line or f"{key} = {folder / name} answers" in line
        assert TOLD[held] in line, (command, line)
        assert not any(tmp_path.iterdir()), command


def test_a_checkpoint_is_told_from_its_run(folder: Path, tmp_path: Path, capsys: Any):
    for run in ("vqa", "clip"):
        (checkpoint,) = (one for one in (folder / run / "checkpoints").iterdir() if one.is_dir())
        for command, (wanted, words) in commands(folder, str(checkpoint), tmp_path).items():
            assert main(words) == 2, command
            (line,) = capsys.readouterr().err.splitlines()
            assert (
                f"is a checkpoint, which a run resumes from; name the run, {folder / run}" in line
            )
            assert wanted and not any(tmp_path.iterdir())


def test_every_kind_has_a_summary_and_runs_have_reports(folder: Path, tmp_path: Path, capsys: Any):
    for name, kind in HOLDS.items():
        status = 2 if kind in ("tower", "adapter") else 0
        assert main(["summary", str(folder / name)]) == status, name
    for run in ("vqa", "clip"):
        shutil.copytree(folder / run, tmp_path / run)
        assert main(["report", str(tmp_path / run)]) == 0


def test_other_shapes_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """A CLIP with a text tower of another width, to a run with questions."""
    words = ["--model.init", str(folder / "clip"), "--run-dir", str(tmp_path / "run")]
    capsys.readouterr()
    assert main(["train", str(folder / "recipe.toml"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.init = " in line and "leave the towers' shapes as they are" in line
