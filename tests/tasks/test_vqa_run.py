"""A run that answers questions: it learns, resumes bit for bit, is evaluated and asked."""

import base64
import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributed.tensor import DTensor

from mmtrain.build.run import Run, build_run
from mmtrain.cli import main
from mmtrain.data.images.transforms import eval_transform
from mmtrain.data.questions.batches import TextForm
from mmtrain.data.questions.question import as_shown
from mmtrain.errors import UsageError
from mmtrain.eval.look.answer_picture import answer_picture
from mmtrain.eval.look.answers import look
from mmtrain.loading.vqa import load_vqa
from mmtrain.models.vision import VisionTower
from mmtrain.models.vqa_stage import Asked
from mmtrain.nn.block import TransformerBlock
from mmtrain.parallel.mesh import build_layout, pick_device
from mmtrain.recipe import load_recipe
from mmtrain.settings.decode import dump_toml
from tests.data.questions.gqa_files import draw_gqa, write_gqa
from tests.data.questions.vqa_files import write_set
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]
CORE: dict[str, Any] = {"dim": 16, "num_layers": 2, "num_heads": 2}
PLACES = ["image", "question", "vision"]
DOORS = {"front_door": {"entries": 4, "places": PLACES}}


def write_recipe(folder: Path, *, num: int = 12, **changes: Any) -> Path:
    files = write_set(folder, num=num)
    content = {
        "run": {"dir": str(folder / "run")},
        "data": {"train": files["data"]},
        "tokenizer": {
            "kind": "sentencepiece",
            "path": str(ROOT / "mmtrain/demo/vqa/sentencepiece.model"),
            "context_length": 12,
            "clean": "canonicalize",
        },
        "model": {
            "embed_dim": 16,
            "vision": {"image_size": 16, "patch_size": 8, "transformer": CORE},
            "text": {"transformer": CORE | {"mask": "causal"}},
        },
        "vqa": {
            "min_count": 2,
            "data": {
                "questions": files["questions"],
                "annotations": files["annotations"],
                "per_image": 3,
                "answer_length": 4,
            },
            "front_door": {"entries": 4},
            "classify": {"fusion": CORE},
            "generate": {"transformer": CORE | {"mask": "block"}},
        },
        "train": {"steps": 6, "batch_size": 4, "log_every": 1, "checkpoint_every": 3},
        "optim": {"lr": 3e-3, "ema_decay": 0.9},
        "eval": {
            "vqa": [
                {
                    "name": "own",
                    "data": files["data"],
                    "questions": files["questions"],
                    "annotations": files["annotations"],
                }
            ]
        },
    }
    for key, value in changes.items():
        content[key] = content.get(key, {}) | value
    path = folder / "recipe.toml"
    path.write_text(dump_toml(content))
    return path


def build(path: Path, *overrides: str) -> Run:
    recipe = load_recipe(path, list(overrides))
    return build_run(recipe, build_layout(recipe.parallel, pick_device("cpu")))


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_examples(run: Path, sides: dict[str, list[dict[str, Any]]]) -> None:
    """Right and wrong answers have their pictures, another image each, and the report has them."""
    rows = sides["best"] + sides["worst"]
    assert rows and len({row["key"] for row in rows}) == len(rows)
    page = (run / "report.html").read_text()
    for side, row in ((side, row) for side, some in sides.items() for row in some):
        picture, attention = (
            (run / "eval" / row[k]).read_bytes() for k in ("picture", "attention")
        )
        assert attention != picture
        assert base64.b64encode(attention).decode() in page
        assert (row["predicted"] == row["text"].rpartition("? ")[2]) == (side == "best")
        assert re.fullmatch(
            r"\d+% sure" + "".join(rf"; {place} entries [\d, ]+" for place in PLACES), row["remark"]
        )
    assert "No maps are here" not in page


def test_it_learns_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_recipe(tmp_path, vqa=DOORS)
    content = tomllib.loads(path.read_text())
    (own,) = content["eval"]["vqa"]
    content["eval"]["vqa"] += [own | {"name": "written", "head": "generate"}]
    path.write_text(dump_toml(content))
    long = ["--train.steps", "60", "--train.checkpoint_every", "60"]
    assert main(["train", str(path), *long, "--run-dir", str(tmp_path / "one")]) == 0
    one = losses(tmp_path / "one")
    assert sum(one[-5:]) < 0.6 * sum(one[:5])
    model = load_vqa(tmp_path / "one")
    assert model.vocabulary is not None and "red" in model.vocabulary.answers
    assert main(["summary", str(tmp_path / "one")]) == 0
    shown, total = capsys.readouterr().out, sum(p.numel() for p in model.model.parameters())
    assert f"one: {total:,} parameters" in shown and "generate.decoder.transformer.blocks" in shown
    result = json.loads((tmp_path / "one/eval/own.json").read_text())
    check_examples(tmp_path / "one", result["examples"])
    written = json.loads((tmp_path / "one/eval/written.json").read_text())
    assert (result["head"], written["head"]) == ("classify", "generate")
    assert result["num_questions"] == 36 and set(result["per_answer_type"]) == {"other", "yes/no"}
    capsys.readouterr()
    images = tmp_path / "images"
    files = ["--questions", str(tmp_path / "questions.json")]
    files += ["--annotations", str(tmp_path / "annotations.json")]
    out = tmp_path / "result.json"
    common = ["--model", str(tmp_path / "one")]
    for head in ("classify", "generate"):
        words = ["--head", head, "--probes", "--predictions", str(tmp_path / "said.json")]
        assert (
            main(["eval", "vqa", *common, "--data", str(images), *files, *words, "--out", str(out)])
            == 0
        )
        figures = json.loads(out.read_text())
        assert {"question_only_accuracy", "image_only_accuracy"} <= set(figures)
        said = json.loads((tmp_path / "said.json").read_text())
        assert len(said) == 36 and set(said[0]) == {"question_id", "answer"}
        picture = str(sorted(images.iterdir())[0])
        look = tmp_path / f"{head}.png"
        ask = ["--image", picture, "--question", "is it red?", "--head", head]
        assert main(["ask", *common, *ask, "--out", str(look)]) == 0
        assert look.is_file()
        assert "dictionary of the image: entries" in capsys.readouterr().out


def test_ask_writes_to_a_terminal_as_the_answer_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Piece by piece there, in a line elsewhere; the same words and the same probability."""
    path = write_recipe(tmp_path)
    words = ["--run-dir", str(tmp_path / "one"), "--train.steps", "60", "--optim.lr", "1e-2"]
    assert main(["train", str(path), *words, "--train.checkpoint_every", "60"]) == 0
    picture = sorted((tmp_path / "images").iterdir())[0]
    ask = ["ask", "--model", str(tmp_path / "one"), "--image", str(picture), "--head", "generate"]
    ask += ["--question", "What color is it?", "--question", "Is it red?"]
    capsys.readouterr()
    assert main(ask) == 0
    piped = capsys.readouterr().out
    pieces: list[str] = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: pieces.append(text) or write(text))
    assert main(ask) == 0
    assert "".join(pieces) == piped
    said = [line[2:22].strip() for line in piped.splitlines() if line.startswith("  ")]
    assert len(said) == 2 and all(said)
    assert len([piece for piece in pieces if piece.strip()]) >= 6


@pytest.mark.parametrize("head", ["classify", "generate"])
def test_ask_refuses_what_the_model_would_not_read_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str
):
    """Before any answer, though it stands behind one that is read whole."""
    path = write_recipe(tmp_path)
    assert main(["train", str(path), "--run-dir", str(tmp_path / "one"), "--train.steps", "1"]) == 0
    picture = sorted((tmp_path / "images").iterdir())[0]
    ask = ["ask", "--model", str(tmp_path / "one"), "--image", str(picture), "--head", head]
    for number, code in ((1, 0), (12, 2)):
        capsys.readouterr()
        words = ["--question", "Is it red?", "--question", f"Is it {'very ' * number}red?"]
        assert main([*ask, *words]) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "question = Is it very" in said.err and "longer than 12 tokens" in said.err


def test_ask_draws_the_head_that_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Map and dictionary entries are of the head asked, for every question; the other head, drawn
    anew, changes nothing."""
    path = write_recipe(tmp_path)
    assert main(["train", str(path), "--run-dir", str(tmp_path / "one"), "--train.steps", "1"]) == 0
    picture = sorted((tmp_path / "images").iterdir())[0]
    questions = ["Is it red?", "What color is it?"]
    ask = ["ask", "--model", str(tmp_path / "one"), "--image", str(picture)]
    ask += [word for text in questions for word in ("--question", text)]
    saved = load_vqa(tmp_path / "one")
    pixels = eval_transform(saved.preprocess)(Image.open(picture))[None]
    for head, other in (("classify", "generate"), ("generate", "classify")):
        capsys.readouterr()
        assert main([*ask, "--head", head, "--out", str(tmp_path / f"{head}.png")]) == 0
        shown = capsys.readouterr().out
        for number, text in enumerate(questions, 1):
            tokens, length, _ = TextForm(tokenizer=saved.tokenizer).encode([(text, "")])
            asked = Asked(tokens_QT=tokens, question_length_Q=length, length_Q=length)
            want = look(saved.model, pixels, asked, head=head)
            drawn = Image.open(tmp_path / f"{head}-{number}.png")
            said = shown.partition(f"{text}\n")[2].splitlines()[0]
            seen = answer_picture(
                Image.open(picture),
                want.grid,
                region=(0, 0, 1, 1),
                question=text,
                answer=as_shown(said[2:22].strip(), is_cut="(cut off after 4 tokens" in said),
                probability=float(said[22:].partition("%")[0]) / 100,
            )
            # A third decimal may fall the other way in the text; the map is the same.
            assert drawn.size == seen.size
            below = (0, 120, drawn.width, drawn.height)
            assert drawn.crop(below).tobytes() == seen.crop(below).tobytes()
            for place, entries in want.entries.items():
                assert f"dictionary of the {place}: entries {entries[0][0]} (" in shown
            bystander = copy.deepcopy(saved.model)
            for parameter in getattr(bystander, other).parameters():
                torch.nn.init.normal_(parameter.data)
            again = look(bystander, pixels, asked, head=head)
            torch.testing.assert_close(again.grid, want.grid, atol=1e-5, rtol=0)
            for place, entries in want.entries.items():
                weights = dict(again.entries[place])
                assert all(weights[n] == pytest.approx(w, abs=1e-5) for n, w in entries), place
        assert ("dictionary of the question" in shown) == (head == "classify")
    classified, written = (Image.open(tmp_path / f"{h}-1.png") for h in ("classify", "generate"))
    assert classified.tobytes() != written.tobytes()


def test_answers_come_from_fused_blocks_and_are_the_plain_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """By both commands and both heads; blocks that look at the image have no fused form."""
    path = write_recipe(tmp_path)
    short = ["--train.steps", "1", "--eval.vqa", "[]"]
    assert main(["train", str(path), *short, "--run-dir", str(tmp_path / "one")]) == 0
    plain: list[str] = []
    forward = TransformerBlock.forward

    def counted(self: TransformerBlock, *inputs: Any, **rest: Any) -> torch.Tensor:
        if self.cross_attention is None:
            plain.append("block")
        return forward(self, *inputs, **rest)

    monkeypatch.setattr(TransformerBlock, "forward", counted)
    picture = sorted((tmp_path / "images").iterdir())[0]
    model = ["--model", str(tmp_path / "one")]
    ask = ["ask", *model, "--image", str(picture), "--question", "is it red?", "--question", "why?"]
    asks = ["eval", "vqa", *model, "--data", str(tmp_path / "images"), "--predictions"]
    asks += [str(tmp_path / "said.json"), "--questions", str(tmp_path / "questions.json")]

    def said(head: str) -> tuple[list[str], str]:
        capsys.readouterr()
        assert main([*ask, "--head", head]) == 0
        told = [line[:22].strip() for line in capsys.readouterr().out.splitlines()]
        assert main([*asks, "--head", head]) == 0
        return told, (tmp_path / "said.json").read_text()

    heads = ("classify", "generate")
    fused = [said(head) for head in heads]
    assert not plain and all(fused[1][0][1::2])
    monkeypatch.setattr("mmtrain.eval.questions.answerer.fused_vqa", lambda model, dtype: model)
    assert [said(head) for head in heads] == fused and plain


def test_predictions_ask_once_and_need_no_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """With figures, without, and of a test set: one forward a batch; `eval answers` agrees."""
    path = write_recipe(tmp_path)
    assert main(["train", str(path), "--run-dir", str(tmp_path / "one"), "--train.steps", "2"]) == 0
    asked: list[int] = []
    see = VisionTower.forward

    def counted(self: VisionTower, x: torch.Tensor, **options: Any) -> torch.Tensor:
        if len(x) > 1:  # an example's map is of one
            asked.append(len(x))
        return see(self, x, **options)

    monkeypatch.setattr(VisionTower, "forward", counted)
    said, out = tmp_path / "said.json", tmp_path / "out.json"
    common = ["eval", "vqa", "--model", str(tmp_path / "one"), "--data", str(tmp_path / "images")]
    common += ["--questions", str(tmp_path / "questions.json"), "--fast", "--batch-size", "5"]
    known = ["--annotations", str(tmp_path / "annotations.json")]
    capsys.readouterr()
    assert main([*common, *known, "--predictions", str(said), "--out", str(out)]) == 0
    assert asked == [5, 5, 2]
    figures, first = json.loads(out.read_text()), said.read_text()
    out.unlink()
    for words in ([*known], [], ["--out", str(out)]):
        asked.clear()
        said.unlink()
        capsys.readouterr()
        assert main([*common, *words, "--predictions", str(said)]) == 0
        assert asked == [5, 5, 2] and said.read_text() == first and not out.exists()
        shown = capsys.readouterr().out
        assert ("no answers to compare with" in shown) == (words != known)
    files = ["--questions", str(tmp_path / "questions.json"), *known]
    assert main(["eval", "answers", "--predictions", str(said), *files, "--out", str(out)]) == 0
    again = json.loads(out.read_text())
    shared = figures.keys() & again.keys() - {"provenance"}
    assert {"accuracy", "per_answer_type", "num_images", "mode"} <= shared
    assert all(again[name] == figures[name] for name in shared)
    asked.clear()
    listed = tmp_path / "choices.json"
    listed.write_text('{"1": {"valid": [], "plausible": []}}')
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    for words, told in (
        ([*known], "name --out, for the figures, or --predictions, for the answers"),
        (["--out", str(out)], "36 of 36 have no answers, the first is question_id 0; name the set"),
        ([*known, "--predictions", str(said), "--probes"], "--probes has no effect without --out"),
        ([*known, "--predictions", files[1]], "is another file of this command; name a new one"),
        ([*known, "--out", known[1]], "is another file of this command; name a new one"),
        ([*known, "--predictions", str(out), "--out", str(out)], "is another file of this command"),
        ([*known, "--predictions", str(tmp_path)], "is a folder; name a file"),
        (
            [*known, "--out", str(out), "--choices", str(listed)],
            "choices: only GQA has such a file",
        ),
    ):
        assert main([*common, *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line and not asked
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.json")}


def test_gqa_is_learnt_and_judged_in_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Its evaluation normalises nothing, so neither do the answers that a classifier chooses."""
    content = draw_gqa(5, num=36)
    images = tmp_path / "images"
    path = write_recipe(tmp_path)
    for number, row in enumerate(content["questions"].values()):
        row["imageId"] = f"COCO_train2014_{number % 12:012d}"
    words = write_gqa(tmp_path / "gqa", {name: content[name] for name in ("questions", "choices")})
    recipe = tomllib.loads(path.read_text())
    recipe["vqa"]["data"] |= {"questions": words[1], "per_image": 3}
    del recipe["vqa"]["data"]["annotations"], recipe["vqa"]["generate"]
    own = {"name": "own", "data": str(images), "questions": words[1], "choices": words[3]}
    recipe["eval"]["vqa"] = [own]
    path.write_text(dump_toml(recipe))
    run, said, out = tmp_path / "one", tmp_path / "said.json", tmp_path / "out.json"
    # Choices of another split show before the first step.
    others = write_gqa(tmp_path / "other", {"choices": draw_gqa(6, num=3)["choices"]})[1]
    wrong = recipe | {"eval": {"vqa": [own | {"choices": others}]}}
    (tmp_path / "wrong.toml").write_text(dump_toml(wrong))
    assert main(["train", str(tmp_path / "wrong.toml"), "--run-dir", str(tmp_path / "two")]) == 2
    assert "eval own: choices" in capsys.readouterr().err and not (tmp_path / "two").exists()
    assert main(["train", str(path), "--run-dir", str(run)]) == 0
    vocabulary = load_vqa(run).vocabulary
    assert vocabulary is not None and {"t-shirt", "t shirt"} <= set(vocabulary.answers)
    common = ["--model", str(run), "--data", str(images), *words, "--predictions", str(said)]
    assert main(["eval", "vqa", *common, "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert main(["eval", "answers", *words, "--predictions", str(said), "--out", str(out)]) == 0
    again = json.loads(out.read_text())
    names = ("binary", "open", "consistency", "validity", "plausibility", "distribution")
    for name in ("accuracy", *(f"gqa_{name}" for name in names)):
        assert again[name] == figures[name]
        assert json.loads((run / "eval/own.json").read_text())[name] == figures[name]
    assert set(json.loads(said.read_text())[0]) == {"questionId", "prediction"}


def test_resume_is_exact(tmp_path: Path):
    path = write_recipe(tmp_path, vqa=DOORS)
    still = ["--optim.schedule", "constant", "--optim.warmup_steps", "1"]
    for name, steps in (("whole", 6), ("parts", 3)):
        words = ["--run-dir", str(tmp_path / name), "--train.steps", str(steps)]
        assert main(["train", str(path), *still, *words]) == 0
    words = ["--run-dir", str(tmp_path / "parts"), "--train.steps", "6", "--resume-with-changes"]
    assert main(["train", str(path), *still, *words]) == 0
    assert main(["train", str(tmp_path / "parts"), "--resume"]) == 0  # its own recipe is the same
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    first, second = (load_vqa(tmp_path / name).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def gradients(path: Path, *overrides: str) -> tuple[float, dict[str, torch.Tensor]]:
    run = build(path, "--train.precision", "fp64", *overrides)
    loss = run.state.objective.step(run.state.schedule, run.data.batch(0))
    grads = run.state.stage_parameters().items()
    return loss.item(), {n: p.grad for n, p in grads if p.grad is not None}


def test_microbatches_change_no_gradient(tmp_path: Path):
    path = write_recipe(tmp_path)
    loss, whole = gradients(path)
    for parts in ("2", "4"):
        other, cut = gradients(path, "--train.microbatches", parts)
        assert other == pytest.approx(loss, rel=1e-12) and whole.keys() == cut.keys()
        for name, value in whole.items():
            # A key's bias has no gradient but noise.
            assert (cut[name] - value).norm() <= 1e-9 * value.norm().clamp(min=1e-3), name


def test_dictionaries_start_as_centres_and_the_model_as_without_them(tmp_path: Path):
    state = build(write_recipe(tmp_path, vqa=DOORS)).state.stage_parameters()
    doors = ["classify.front_doors.image", "vision.transformer.blocks.0.front_door"]
    for door in (*doors, "vision.transformer.blocks.1.front_door"):
        assert state[f"{door}.dictionary"].std() > 0.1  # not the small noise of init = "random"
        assert not state[f"{door}.fuse.weight"].any()


@pytest.mark.slow
def test_a_front_door_that_is_new_starts_from_the_trained_features(tmp_path: Path):
    """Stage two of the paper: dictionaries are centres of what the trained towers make."""
    bare = tomllib.loads(write_recipe(tmp_path).read_text())
    del bare["vqa"]["front_door"]
    (tmp_path / "bare.toml").write_text(dump_toml(bare))
    assert main(["train", str(tmp_path / "bare.toml"), "--run-dir", str(tmp_path / "one")]) == 0
    path, init = tmp_path / "recipe.toml", ["--vqa.init", str(tmp_path / "one")]
    name = "classify.front_doors.image.dictionary"
    anew = build(path, *init)
    assert anew.state.stage_parameters()[name].std() > 0.1  # not small noise
    # One that was read stays as it is.
    assert main(["train", str(path), *init, "--run-dir", str(tmp_path / "two")]) == 0
    wanted = load_vqa(tmp_path / "two").model.state_dict()[name]
    read = build(path, "--vqa.init", str(tmp_path / "two")).state.stage_parameters()[name]
    assert torch.equal(read, wanted)


def test_parts_have_their_own_learning_rate_or_none(tmp_path: Path):
    path = write_recipe(tmp_path)
    words = ["--vqa.vision_lr", "1e-4", "--lock.text", "0", "--vqa.connector_lr", "2e-3"]
    run = build(path, *words, "--lock.decoder", "0")
    assert any(".connector." in name for name in run.state.stage_parameters())
    groups = run.state.optimizers.optimizers[0].param_groups
    named = {id(p): name for name, p in run.state.stage_parameters().items()}
    for group in groups:
        for parameter in group["params"]:
            name = named[id(parameter)]
            assert not name.startswith(("text.", "generate.decoder."))
            wanted = 1e-4 if name.startswith("vision.") else 3e-3
            wanted = 2e-3 if ".connector." in name else wanted
            assert group["peak_lr"] == pytest.approx(wanted), name


def test_training_in_stages(tmp_path: Path):
    path = write_recipe(tmp_path)
    assert main(["train", str(path), "--run-dir", str(tmp_path / "one"), "--lock.vision", "0"]) == 0
    run = build(path, "--vqa.init", str(tmp_path / "one"))
    wanted = load_vqa(tmp_path / "one").model.state_dict()
    for name, value in run.state.stage_parameters().items():
        assert torch.equal(value, wanted[name]), name


def test_a_start_of_other_answers_texts_or_images_is_told(tmp_path: Path):
    """As many answers in another order would fit the shapes and mean something else."""
    path, init = write_recipe(tmp_path), ["--vqa.init", str(tmp_path / "one")]
    assert main(["train", str(path), "--run-dir", str(tmp_path / "one")]) == 0
    assert build(path, *init).notes == ()
    for words, told in (
        (("--data.resize_mode", "squash"), 'data.resize_mode = "squash", but vqa.init = '),
        (("--tokenizer.clean", "lower"), "[tokenizer] is another one than that of vqa.init = "),
        (("--vqa.generate.rope_theta", "5"), "vqa.generate.rope_theta = 5.0, but vqa.init = "),
        (("--model.text.transformer.norm_order", "post"), 'norm_order = "post", but vqa.init'),
    ):
        (note,) = build(path, *init, *words).notes
        assert told in note
    with pytest.raises(UsageError, match=r"vqa.front_door.init = .* has no effect: vqa.init"):
        build(path, *init, "--vqa.front_door.init", "random")
    annotations = tmp_path / "annotations.json"
    annotations.write_text(annotations.read_text().replace('"red"', '"crimson"'))
    with pytest.raises(UsageError, match=r"chooses among other answers: number \d is '"):
        build(path, *init)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_recipe(tmp_path)

    def mistake(*words: str) -> str:
        assert main(["train", str(path), "--run-dir", str(tmp_path / "bad"), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no effect beside [vqa]" in mistake("--loss.kind", "siglip")
    chosen = '[{name = "own", data = "none", head = "generate"}]'
    alone = ("--vqa.generate", "none", "--eval.vqa", chosen)
    assert 'head = "generate" has no [vqa.generate]' in mistake(*alone)
    assert "vqa.min_count = 99: no answer" in mistake("--vqa.min_count", "99")
    assert "data.label_key has no effect" in mistake("--data.label_key", "concept")
    (tmp_path / "images/COCO_train2014_000000000005.png").unlink()
    assert "1 of 12 images are not there" in mistake()
    assert (
        main(["ask", "--model", str(tmp_path / "images"), "--image", "x.png", "--question", "?"])
        == 2
    )
    assert "holds no model" in capsys.readouterr().err


def own_gradients(rank: int, path: Path, overrides: list[str]) -> None:
    """One rank's parameters, their gradients whole, against the single process's on disk."""
    wanted = torch.load(path.parent / "whole.pt", weights_only=True)
    loss, found = gradients(path, *overrides)
    assert loss == pytest.approx(wanted.pop("loss").item(), rel=1e-12), overrides
    assert found and found.keys() <= wanted.keys()
    for name, gradient in found.items():
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        error = (whole - wanted[name]).norm()
        assert error <= 1e-9 * wanted[name].norm().clamp(min=1e-3), f"{overrides}: {name}"


LAYOUTS = {
    "fsdp": [],
    "tp": ["--parallel.tp", "2"],
    "pp": ["--parallel.pp", "2", "--train.microbatches", "2"],
}


def check_layouts(rank: int, path: Path, names: list[str]) -> None:
    """Each of the layouts, on two ranks."""
    for name in names:
        own_gradients(rank, path, LAYOUTS[name])


def write_whole(path: Path) -> None:
    """The single process's loss and gradients, beside the recipe."""
    loss, whole = gradients(path)
    state = {"loss": torch.tensor(loss, dtype=torch.float64), **whole}
    torch.save(state, path.parent / "whole.pt")


@pytest.mark.slow
def test_two_ranks_have_the_single_process_gradients(tmp_path: Path):
    path = write_recipe(tmp_path)
    write_whole(path)
    run_ranks(check_layouts, 2, path, [*LAYOUTS])


TORCHRUN = {"pp": (2, LAYOUTS["pp"]), "tp x fsdp": (4, LAYOUTS["tp"])}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHRUN)
def test_torchrun_trains_resumes_evaluates_and_exports(name: str, tmp_path: Path):
    """As a user types it: half of the run, then the other half at one process; the whole run's
    losses, a result of every question and a model that loads."""
    num_ranks, words = TORCHRUN[name]
    path = write_recipe(tmp_path)
    still = ["--optim.schedule", "constant", "--optim.warmup_steps", "1"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["train", str(path), *still, "--run-dir", str(one)]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    train = ["-m", "mmtrain", "train", str(path), *still, "--run-dir", str(two)]
    half = ["--train.steps", "3"]
    done = subprocess.run(
        [*torchrun, str(num_ranks), *train, *half, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((two / "eval/own.json").read_text())
    assert result["num_questions"] == 36
    exported = load_vqa(two).model.state_dict()
    assert main(["train", str(path), *still, "--run-dir", str(two), "--resume-with-changes"]) == 0
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert exported.keys() == load_vqa(one).model.state_dict().keys()


@pytest.mark.parametrize(
    ("size", "told"),
    [("image_size = 8", "image_size = 8: [vqa] has"), ("context_length = 8", "context_length = 8")],
)
def test_phases_have_images_and_questions_of_one_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str, told: str
) -> None:
    """Whose places a decoder counts; batches may change."""
    recipe = write_recipe(tmp_path, eval={"vqa": []})
    words = ["train", str(recipe), "--train.phase"]
    phases = "[{{ steps = 2, batch_size = 6{} }}, {{ steps = 1, patch_dropout = 0.5 }}]"
    assert main([*words, phases.format(f", {size}")]) == 2
    error = capsys.readouterr().err
    assert f"train.phase[0]: {told}" in error and "at places of their own; leave it out" in error
    if size.startswith("image"):
        assert main([*words, phases.format("")]) == 0
        assert len(losses(tmp_path / "run")) == 3
