"""A look into a step: its parts are those of the loss and gradient that the run logged."""

import json
import math
from pathlib import Path

import pytest

from mmtrain.build.again import Stretch, again
from mmtrain.cli import main
from mmtrain.commands.why import look_into
from mmtrain.report.why_page import Usual
from tests.commands.test_replay import train
from tests.tasks.test_vqa_run import write_recipe
from tests.train.test_resume_changes import files

ROOT = Path(__file__).parents[2]
SHORT = ("--train.log_every", "1")
CASES = {
    "softmax": ("debug_clip", ()),
    "microbatches": ("debug_clip", ("--train.microbatches", "4")),
    "fp16": ("debug_clip", ("--train.precision", "fp16", "--train.loss_scale.initial", "64")),
    "sigmoid": ("debug_siglip", ()),
    "sigmoid by parts": ("debug_siglip", ("--train.microbatches", "2")),
    "mixture": ("debug_mixture", ()),
    "dialogues": ("debug_dialogues", ()),
    "packed": ("debug_dialogues", ("--vqa.dialogues.pack", "true")),
    "questions": (None, ()),
}


@pytest.mark.parametrize(
    "case",
    [
        case if case in ("softmax", "dialogues") else pytest.param(case, marks=pytest.mark.slow)
        for case in CASES
    ],
)
def test_rows_and_layers_add_up_to_what_was_logged(tmp_path: Path, case: str) -> None:
    """Loss by rows and gradients by layers, at a step between two checkpoints."""
    name, words = CASES[case]
    recipe = write_recipe(tmp_path) if name is None else ROOT / f"configs/{name}.toml"
    run = tmp_path / "run"
    begin = ["train", str(recipe), "--run-dir", str(run), "--train.steps", "3", *SHORT, *words]
    assert main(begin) == 0
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    with again(run, Stretch(start=0, steps=(3,)), overrides=[]) as stand:
        why = look_into(stand, 3)
    tolerance = 2e-3 if case == "fp16" else 1e-5
    assert why.loss.value == pytest.approx(logged["loss"], rel=1e-6)
    assert sum(one.part for one in why.samples) == pytest.approx(logged["loss"], rel=tolerance)
    norm = math.hypot(*(layer.value for layer in why.layers.values()))
    assert norm == why.norm.value == pytest.approx(logged["grad_norm"], rel=1e-5)
    assert why.num_before == 2 and len(why.samples) > 3
    parts = [times for _, times in why.by_part]
    assert parts == sorted(parts, reverse=True) and parts[0] > parts[-1]
    assert sum(parts) == pytest.approx(len(parts))


def test_the_lines_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sample of the batch with another's caption is the one that loses most, and is shown."""
    run, page = tmp_path / "<run>", tmp_path / "why.html"
    train(run, "--train.steps", "10")
    before = files(run)
    words = ["why", str(run), "--step", "10", "--rows", "3"]
    capsys.readouterr()
    assert main([*words, "--out", str(page)]) == 0
    assert files(run) == before
    told = capsys.readouterr().out.splitlines()
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"step 10: loss {logged['loss']:.4g}"[:18] in told[1]
    samples = told[told.index(next(line for line in told if line.startswith("16 rows"))) + 1 :][:3]
    html = page.read_text()
    assert html.count('<article class="card row">') == 3 and "and 13 more rows" in html
    assert "&lt;run&gt;" in html and "<run>" not in html
    assert "median of the 8 steps before" in html and html.count("data:image/webp") == 3
    for line in samples:
        assert line.split()[1] in html
    for layer in ("vision.block 0", "text.embed", "logit_scale"):
        assert layer in html and any(line.startswith(layer) for line in told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--step", "3"), "--step 3 is beyond the run's 2 steps"),
        (("--step", "2", "--optim.lr", "1"), "optim.lr = 1.0 would make another step"),
        (("--step", "2", "--out", "x.json"), "--out x.json must end in .html"),
        (("--step", "2", "--rows", "0"), "0 must be an int, at least 1"),
    ],
)
def test_what_is_no_step_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    train(tmp_path / "run", "--train.steps", "2")
    capsys.readouterr()
    assert main(["why", str(tmp_path / "run"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert main(["why", str(tmp_path), "--step", "1"]) == 2
    assert "so it is no run" in capsys.readouterr().err


def test_ranks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["why", str(tmp_path), "--step", "1"]) == 2
    assert "without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "usual", "times"), [(6.0, 2.0, 3.0), (6.0, None, None), (6.0, 0.0, None)]
)
def test_how_many_times_what_is_usual(
    value: float, usual: float | None, times: float | None
) -> None:
    assert Usual(value=value, usual=usual).times == times
