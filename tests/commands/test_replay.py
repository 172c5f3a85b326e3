"""Steps of a run taken again: the numbers that it logged, to the bit, and what is refused."""

import json
import math
import random
import re
import shutil
from pathlib import Path

import pytest
import torch.distributed as dist

from mmtrain.cli import main
from mmtrain.commands.replay import Figure
from tests.data.shard_files import write_set
from tests.ranks import run_ranks
from tests.train.test_resume_changes import RECIPE, files

LONG = ("--train.log_every", "1", "--train.checkpoint_every", "4", "--train.keep_checkpoints", "9")


def train(run: Path, *words: str) -> None:
    assert main(["train", RECIPE, "--run-dir", str(run), *LONG, *words]) == 0


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 10 steps, of which the last 2 learn more slowly: checkpoints of 4, 8 and 10."""
    run = tmp_path_factory.mktemp("replay") / "run"
    train(run, "--train.steps", "8")
    words = ["--resume-with-changes", "--train.steps", "10", "--optim.lr", "1e-5"]
    assert main(["train", str(run), *words]) == 0
    return run


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "run")
    return tmp_path / "run"


def replay(run: Path, *words: str) -> int:
    return main(["replay", str(run), *words])


def test_steps_come_again_to_the_bit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the beginning and from checkpoints, before and behind a change of the recipe; the proof
    says so, and nothing in the folder is touched."""
    before, proof = files(run), tmp_path / "proof.json"
    assert replay(run, "--step", "10", "3", "8", "5", "3", "--out", str(proof)) == 0
    assert files(run) == before
    told = json.loads(proof.read_text())
    starts = [(one["step"], one["start"]) for one in told["steps"]]
    beginning, first, second = "the beginning", "step-00000004", "step-00000008"
    assert starts == [(3, beginning), (5, first), (8, first), (10, second)]
    assert {one["verdict"] for one in told["steps"]} == {"equal"}
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for one in told["steps"]:
        line = logged[one["step"] - 1]
        for figure in one["figures"]:
            assert figure["again"] == figure["logged"] == line[figure["name"]]
    out = capsys.readouterr().out
    assert out.count("  equal") == 4 and "4 of 4 steps are those of the run: 4 to the bit" in out


@pytest.mark.parametrize(
    ("name", "value"), [("loss", 1.0001), ("grad_norm", 1.001), ("lr", 1.1)], ids=lambda v: str(v)
)
def test_a_line_that_was_changed_is_found(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, value: float
) -> None:
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[5][name] *= value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert replay(run, "--step", "5", "6", "7") == 1
    said = capsys.readouterr()
    assert "1 of 3 steps are not what" in said.err and "step 6" in said.err
    assert said.out.count("  equal") == 2 and said.out.count("  differs") == 1


def test_sums_in_another_order_are_within_the_tolerance(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--step", "2", "6", "--train.microbatches", "4")
    assert replay(run, *words) == 0
    assert "2 within 1e-05" in capsys.readouterr().out
    assert replay(run, *words, "--tolerance", "1e-12") == 1


def test_a_recipe_that_is_not_kept_is_not_guessed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps before a change whose recipe no checkpoint holds, or over a change."""
    shutil.rmtree(run / "checkpoints/step-00000008")
    shutil.rmtree(run / "checkpoints/step-00000004")
    assert replay(run, "--step", "9") == 2
    assert "was resumed with changes at step 8 (history.jsonl)" in capsys.readouterr().err
    assert replay(run, "--step", "3") == 2
    assert "no checkpoint keeps the recipe of step 3" in capsys.readouterr().err


def test_a_step_that_was_not_finite_comes_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In fp16 with a scale that begins too high the first steps are left out, then as now."""
    run, scale = tmp_path / "run", ("--train.loss_scale.initial", "3e5")
    train(run, "--train.steps", "6", "--train.precision", "fp16", *scale)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged[0]["grad_norm"] is None and logged[5]["grad_norm"] is not None
    assert replay(run, "--step", "1", "2", "6") == 0
    assert "3 to the bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--step", "11"), "--step 11: .*metrics.jsonl has no line of it .*nearest is 10"),
        (("--step", "0"), "0 must be an int, at least 1"),
        ((), "required: --step"),
        (("--step", "3", "--optim.lr", "1"), "optim.lr = 1.0 would make another step of it"),
        (("--step", "3", "--train.batch_size", "8"), "train.batch_size = 8 would make another"),
        (("--step", "3", "--run.seed", "8"), "run.seed = 8 would make another step"),
        (("--step", "3", "--out", "x.txt"), "--out x.txt must end in .json"),
        (("--step", "3", "--tolerance", "0"), "0 must be a number above 0"),
        (("--step", "3", "--data.train", "no.tar"), "data.train = no.tar"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_no_step_of_the_run_is_refused(
    template: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert replay(template, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(told, line), line


def test_other_data_are_refused(
    template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the beginning by run.json, from a checkpoint by its own word."""
    data = write_set(tmp_path / "set", [40])
    for step, told in (("3", "data.train is not what"), ("6", "was saved with")):
        assert replay(template, "--step", step, "--data.train", data) == 2
        assert told in capsys.readouterr().err


def test_folders_that_are_no_run_or_are_damaged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "none", Path(RECIPE)):
        assert replay(place, "--step", "1") == 2
        assert "holds no metrics.jsonl" in capsys.readouterr().err
    shard = next((run / "checkpoints/step-00000004").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert replay(run, "--step", "6") == 2
    assert "checkpoints up to step 4 are damaged" in capsys.readouterr().err
    (run / "run.json").unlink()
    assert replay(run, "--step", "2") == 2
    assert "does not say what data the run had" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("logged", "again", "difference"),
    [
        *((1.0, 1.0, 0), (2.0, 1.0, 0.5), (0.0, 1.0, 1.0), (-1.0, 1.0, 2.0)),
        *((None, None, 0), (1.0, None, math.inf), (None, 1.0, math.inf)),
    ],
)
def test_the_difference_of_a_figure(
    logged: float | None, again: float | None, difference: float
) -> None:
    assert Figure(name="loss", logged=logged, again=again).difference == difference


STEPS = [str(step) for step in random.Random(0).sample(range(1, 41), 20)]


def train_and_replay(rank: int, run: str, out: str) -> None:
    """On this rank, which stays one of them."""
    leave, dist.destroy_process_group = dist.destroy_process_group, lambda *_: None
    try:
        train(Path(run), "--train.steps", "40")
        assert replay(Path(run), "--step", *STEPS, "--out", out) == 0
    finally:
        dist.destroy_process_group = leave


@pytest.mark.slow
def test_twenty_steps_of_two_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Drawn by chance: on two ranks to the bit, on one process within the tolerance."""
    run, proof = tmp_path / "run", tmp_path / "proof.json"
    run_ranks(train_and_replay, 2, str(run), str(proof))
    told = json.loads(proof.read_text())["steps"]
    assert {str(one["step"]) for one in told} == {*STEPS} and len(told) == 20
    assert {one["verdict"] for one in told} == {"equal"}
    assert all(each["again"] == each["logged"] for one in told for each in one["figures"])
    capsys.readouterr()
    assert replay(run, "--step", *STEPS) == 0
    assert "20 of 20 steps are those of the run" in capsys.readouterr().out
