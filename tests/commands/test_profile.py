"""`mmtrain profile` on this machine: a trace, a table, and what cannot be had."""

import gzip
import json

import pytest

from mmtrain.cli import main

RECIPE = "configs/debug_clip.toml"
SMALL = ["--train.batch_size", "8", "--data.workers", "0", "--train.steps", "6"]


def test_a_trace_and_a_table_of_a_recipe(tmp_path, capsys):
    out = tmp_path / "profiled"
    words = ["profile", RECIPE, "--steps", "2", "--out", str(out), *SMALL]
    assert main([*words, "--run.peak_tflops", "0.5", "--train.microbatches", "1"]) == 0
    said = capsys.readouterr().out
    for part in ("waiting for data", "forward: vision", "forward: text", "loss", "backward"):
        assert part in said
    assert "MFU" in said and "bound" in said
    with gzip.open(out / "trace.rank0.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"mmtrain: step", "mmtrain: optimizer", "aten::mm"} <= names
    times = json.loads((out / "times.rank0.json").read_text())
    assert times["steps"] == 2
    assert sum(times["parts"].values()) == pytest.approx(times["step"], rel=0.05)
    assert 0 < times["mfu"] == pytest.approx(times["hfu"], rel=0.05)
    assert {path.name for path in out.iterdir()} == {"times.rank0.json", "trace.rank0.json.gz"}


def test_two_passes_are_work_of_the_hardware_and_not_of_the_model(tmp_path, capsys):
    out = tmp_path / "profiled"
    words = ["profile", RECIPE, "--steps", "1", "--out", str(out), *SMALL]
    assert main([*words, "--train.microbatches", "2"]) == 0
    flops = json.loads((out / "times.rank0.json").read_text())["flops"]
    assert flops["hardware"] == pytest.approx(4 / 3 * flops["model"], rel=0.02)
    assert "give run.peak_tflops" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory"], "--memory shows what a GPU's memory holds"),
        (["--steps", "5"], "--steps 5 and 2 to warm up"),
        (["--out", "configs"], "configs is not an empty folder"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(words, message, tmp_path, capsys):
    given = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    assert main(["profile", RECIPE, *given, *words, *SMALL]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
