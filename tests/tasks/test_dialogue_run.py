"""A run that learns dialogues: it learns, resumes bit for bit, is exported, asked and evaluated."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.loading.vqa import load_vqa
from mmtrain.settings.decode import dump_toml
from tests.tasks.decoder_starts import CHATML, write_decoder
from tests.tasks.dialogue_recipes import dialogue_recipe
from tests.tasks.test_vqa_run import build, losses

TILES = {"tiles": {"most": 4}}


def ask(model: Path, image: Path, *words: str) -> int:
    return main(["ask", "--model", str(model), "--image", str(image), *words])


def pictures(folder: Path) -> list[Path]:
    return sorted((folder / "images").iterdir())


@pytest.mark.slow
def test_it_learns_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tiles and thumbnails, side by side in a row; a question is a dialogue of one turn."""
    path, run = dialogue_recipe(tmp_path, size=(40, 24), vqa=TILES), tmp_path / "one"
    words = ["--train.steps", "200", "--train.checkpoint_every", "200", "--optim.lr", "1e-2"]
    words += ["--vqa.dialogues.pack", "true"]
    assert main(["train", str(path), *words, "--run-dir", str(run)]) == 0
    one = losses(run)
    assert sum(one[-5:]) < 0.3 * sum(one[:5])
    saved = load_vqa(run)
    assert saved.model.config.reads_dialogues and saved.model.config.tiles is not None
    during = json.loads((run / "eval/own.json").read_text())
    assert during["head"] == "generate" and during["accuracy"] > 0.9
    capsys.readouterr()
    for picture, colour in zip(pictures(tmp_path)[3:6], ("red", "green", "blue"), strict=True):
        assert ask(run, picture, "--question", "What color is it?") == 0
        assert capsys.readouterr().out.split()[4] == colour
    files = ["--questions", str(tmp_path / "questions.json")]
    files += ["--annotations", str(tmp_path / "annotations.json")]
    results = []
    for batch in ("2", "7"):
        out = tmp_path / f"{batch}.json"
        asked = ["--model", str(run), "--data", str(tmp_path / "images"), "--probes"]
        assert main(["eval", "vqa", *asked, *files, "--batch-size", batch, "--out", str(out)]) == 0
        results.append(json.loads(out.read_text()))
    assert results[0]["accuracy"] == during["accuracy"]
    assert results[0]["image_only_accuracy"] < 0.8 and results[0]["question_only_accuracy"] < 0.8
    outcomes = [(tmp_path / f"{batch}.outcomes.jsonl").read_bytes() for batch in ("2", "7")]
    assert outcomes[0] == outcomes[1]
    total = sum(p.numel() for p in saved.model.parameters())
    capsys.readouterr()
    assert main(["summary", str(run)]) == 0
    assert f"one: {total:,} parameters" in capsys.readouterr().out


@pytest.mark.parametrize("pack", [pytest.param("false", marks=pytest.mark.slow), "true"])
def test_resume_is_exact(tmp_path: Path, pack: str) -> None:
    path = dialogue_recipe(tmp_path)
    still = ["--optim.schedule", "constant", "--optim.warmup_steps", "1"]
    still += ["--eval.vqa", "[]", "--vqa.dialogues.pack", pack, "--train.microbatches", "2"]
    for name, steps in (("whole", 6), ("parts", 3)):
        words = ["--run-dir", str(tmp_path / name), "--train.steps", str(steps)]
        assert main(["train", str(path), *still, *words]) == 0
    words = ["--run-dir", str(tmp_path / "parts"), "--train.steps", "6", "--resume-with-changes"]
    assert main(["train", str(path), *still, *words]) == 0
    assert main(["train", str(tmp_path / "parts"), "--resume"]) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    first, second = (load_vqa(tmp_path / name).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_from_a_trained_decoder_with_an_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its chat template asks as the dialogues are written; LoRA; the tower at its own rate."""
    (tmp_path / "decoder").mkdir()
    decoder = write_decoder(tmp_path / "decoder", chat=CHATML)
    generate: dict[str, Any] = {"generate": {"init": str(decoder)}}
    path = dialogue_recipe(tmp_path, vqa=generate)
    content = path.read_text().partition("[tokenizer]")
    rest = content[2].partition("\n[")
    path.write_text(f"{content[0]}[tokenizer]\ncontext_length = 40\n\n[{rest[2]}")
    adapter = ["--peft.kind", "lora", "--peft.targets", '["generate.decoder.*.attention.*"]']
    adapter += ["--peft.also_train", '["generate.connector.*", "vision.*"]']
    adapter += ["--vqa.vision_lr", "1e-4"]
    run = tmp_path / "one"
    assert main(["train", str(path), *adapter, "--run-dir", str(run)]) == 0
    capsys.readouterr()
    assert ask(run, pictures(tmp_path)[0], "--question", "What color is it?") == 0
    trained = build(path, *adapter)
    rates = {g["peak_lr"] for o in trained.state.optimizers.optimizers for g in o.param_groups}
    assert rates == {3e-3, 1e-4}
    with pytest.raises(UsageError, match=r"peft.dropout .* set peft.dropout = 0"):
        build(path, *adapter, "--peft.dropout", "0.1")


def test_training_in_stages(tmp_path: Path) -> None:
    """From a model of questions, all its weights; from one without tiles, places start anew."""
    path, one, two = dialogue_recipe(tmp_path, size=(40, 24)), tmp_path / "one", tmp_path / "two"
    content = tomllib.loads(path.read_text())
    del content["vqa"]["dialogues"]
    content["data"]["train"] = str(tmp_path / "images")
    files = {name: str(tmp_path / f"{name}.json") for name in ("questions", "annotations")}
    content["vqa"]["data"] |= files
    (tmp_path / "questions.toml").write_text(dump_toml(content))
    words = ["--train.steps", "2", "--eval.vqa", "[]", "--run-dir"]
    assert main(["train", str(tmp_path / "questions.toml"), *words, str(one)]) == 0
    words = ["--vqa.init", str(one), *words]
    assert main(["train", str(path), *words, str(two)]) == 0
    begun = build(path, "--vqa.init", str(one)).state.stage_parameters()
    wanted = load_vqa(one).model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in begun.items())
    state = build(path, "--vqa.init", str(two), "--vqa.tiles.most", "4").state.stage_parameters()
    wanted = load_vqa(two).model.state_dict()
    assert state.keys() - wanted.keys() == {"generate.places.rows", "generate.places.columns"}
    assert all(torch.equal(state[name], value) for name, value in wanted.items())


def test_several_sets_are_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dialogue_recipe(tmp_path)
    content = tomllib.loads(path.read_text())
    train = content["data"].pop("train")
    lines = Path(train).read_text().splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_text("".join(lines[:3]))
    content["data"] |= {
        "mixture_end": "repeat",
        "mixture": [
            {"name": "all", "train": train, "weight": 1.0},
            {"name": "some", "train": str(tmp_path / "some.jsonl"), "weight": 1.0},
        ],
    }
    path.write_text(dump_toml(content))
    run = tmp_path / "one"
    assert main(["train", str(path), "--eval.vqa", "[]", "--run-dir", str(run)]) == 0
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["source_samples"] == {"all": 12, "some": 12}


def test_a_front_door_is_filled_from_pieces(tmp_path: Path) -> None:
    door = {"front_door": {"entries": 4, "places": ["image", "vision"]}}
    state = build(dialogue_recipe(tmp_path, size=(40, 24), vqa=TILES | door)).state
    found = [x for name, x in state.stage_parameters().items() if name.endswith("dictionary")]
    assert len(found) == 3 and all(x.std() > 0.1 for x in found)


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, before anything is written."""
    path, run = dialogue_recipe(tmp_path), tmp_path / "one"
    for words, told in (
        (["--vqa.generate.transformer.mask", "prefix"], 'vqa.generate.transformer.mask = "prefix"'),
        (["--vqa.generate.transformer.mask", "block"], 'vqa.generate.transformer.mask = "block"'),
        (["--vqa.data.per_image", "2"], "vqa.data.per_image has no effect beside [vqa.dialogues]"),
        (["--vqa.data.questions", "q.json"], "vqa.data.questions has no effect beside"),
        (["--model.vision.patch_dropout", "0.5"], "model.vision.patch_dropout = 0.5"),
        (
            ["--vqa.connector.kind", "linear", "--vqa.dialogues.max_length", "4"],
            "vqa.dialogues.max_length = 4 holds no image, which is 4 tokens",
        ),
        (["--vqa.tiles.most", "1"], "vqa.tiles.most = 1 cuts no image"),
        (["--vqa.tiles.most", "3", "--data.resize_mode", "squash"], "data.resize_mode has no"),
        (["--vqa.generate.context_length", "50"], "vqa.generate.context_length = 50 holds no"),
        (["--vqa.classify.fusion", "{dim = 16, num_layers = 1, num_heads = 2}"], "classify"),
    ):
        assert main(["train", str(path), *words, "--run-dir", str(run)]) == 2, words
        shown = capsys.readouterr().err
        assert len(shown.splitlines()) == 1, shown
        assert told in shown and not run.exists(), (words, shown)


def test_tiles_need_dialogues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dialogue_recipe(tmp_path)
    for words, told in (
        (["--vqa.tiles.most", "4"], "[vqa.dialogues]"),
        (["--vqa.generate.reads", "dialogues"], 'generate.reads = "dialogues" needs'),
    ):
        assert main(["train", str(path), "--vqa.dialogues", "none", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


@pytest.mark.parametrize("tiles", [{}, TILES], ids=["whole", "tiles"])
@pytest.mark.parametrize(
    ("question", "why"),
    [("what is it that we see there? " * 20, "leaves room for"), ("a <image> b", "shown already")],
)
def test_questions_that_cannot_be_asked_are_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    question: str,
    why: str,
    tiles: dict[str, Any],
) -> None:
    """By their ids, all counted, before anything is asked where they are known, in a run before its
    first step; of shards before the batch that they are in."""
    path, run = dialogue_recipe(tmp_path, size=(40, 24), vqa=tiles), tmp_path / "one"
    assert main(["train", str(path), "--train.steps", "1", "--run-dir", str(run)]) == 0
    asked = json.loads((tmp_path / "questions.json").read_text())
    long = asked["questions"][3:5]
    for row in long:
        row["question"] = question
    (tmp_path / "questions.json").write_text(json.dumps(asked))
    files = ["--questions", str(tmp_path / "questions.json")]
    files += ["--annotations", str(tmp_path / "annotations.json")]
    images, shards = str(tmp_path / "images"), tmp_path / "shards"
    assert main(["data", "vqa", "--images", images, *files, "--out", str(shards)]) == 0
    monkeypatch.setattr("mmtrain.eval.questions.answering.answer_texts", None)
    for data in ([images, *files], [str(shards / "00000.tar")]):
        capsys.readouterr()
        words = ["--model", str(run), "--data", *data, "--out", str(tmp_path / "out.json")]
        assert main(["eval", "vqa", *words, "--quiet"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"question_id {long[0]['question_id']}: the question" in line, line
        assert why in line and "(and 1 more)" in line and "briefly" not in line
    assert main(["train", str(path), "--run-dir", str(tmp_path / "two")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "eval own: evaluation data: question_id" in line and why in line
    assert not (tmp_path / "two").exists()


def test_a_question_without_room_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = dialogue_recipe(tmp_path), tmp_path / "one"
    short = ["--vqa.dialogues.max_length", "24", "--train.steps", "1", "--eval.vqa", "[]"]
    assert main(["train", str(path), *short, "--run-dir", str(run)]) == 0
    capsys.readouterr()
    picture = pictures(tmp_path)[0]
    assert ask(run, picture, "--question", "what is it that we see there? " * 20) == 2
    assert "leaves room for 20" in capsys.readouterr().err
    assert ask(run, picture, "--question", "a <image> b") == 2
    assert "ask otherwise" in capsys.readouterr().err
    assert ask(run, picture, "--question", "why?", "--out", str(tmp_path / "a.png")) == 0
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width > 2 * 416  # the picture beside its map
