"""`mmtrain data show` tells what a run sees; `mmtrain data bench` what that costs."""

import json
import re
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.data.shards.source import ShardSource
from tests.data.shard_files import pairs, write_shard
from tests.mistakes import mistake

RECIPE = "configs/debug_clip.toml"
MIXTURE = "configs/debug_mixture.toml"


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Three shards, of which two samples cannot be used."""
    samples = pairs(0, 40)
    samples[7][1]["txt"] = ""
    samples[30][1]["png"] = b"no image"
    for number in range(3):
        write_shard(tmp_path / f"{number}.tar", samples[number * 14 : (number + 1) * 14])
    return str(tmp_path / "*.tar")


def show(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["data", "show", *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    names = lines[0].split("\t")
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines[1:]]


def options(shards: str) -> list[str]:
    return ["--data.train", shards, "--train.batch_size", "10", "--data.max_bad_fraction", "1"]


def test_an_epoch_of_steps_shows_every_usable_sample_once(
    shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its shard and caption; a bad one's place is taken by another, told as such."""
    given = [*options(shards), "--train.steps", "9"]
    rows = [
        row for step in range(1, 5) for row in show(capsys, RECIPE, "--step", str(step), *given)
    ]
    assert [int(row["position"]) for row in rows] == list(range(40))
    source = ShardSource(shards)
    places = {source.key(n): source.place(n) for n in range(40)}
    bad = {"00007"} | {key for key in ("00030",) if "png" in dict(pairs(0, 40))[key]}
    assert {row["key"] for row in rows} == places.keys() - bad
    for row in rows:
        assert row["shard"] == places[row["key"]]
        assert row["text"] == f"picture {int(row['key'])}"
    other_epoch = show(capsys, RECIPE, "--step", "5", *given)
    assert [row["key"] for row in other_epoch] != [row["key"] for row in rows[:10]]


def test_replaced_samples_are_told(shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = ""
    for step in range(1, 5):
        given = ["--step", str(step), *options(shards), "--train.steps", "9"]
        assert main(["data", "show", RECIPE, *given]) == 0
        told += capsys.readouterr().out
    assert re.search(r"# replaced, position \d+: 00007 in \S+0.tar: no caption", told)


def test_a_run_is_shown_as_it_trained(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The batch that a run writes down, because its loss is not finite, is the one shown."""
    run = tmp_path / "run"
    words = ["--run-dir", str(run), *options(shards), "--train.steps", "3"]
    assert main(["train", RECIPE, *words, "--optim.lr", "1e30", "--train.max_bad_steps", "9"]) == 0
    lines = (run / "bad_batches.jsonl").read_text().splitlines()
    written = {line["step"]: line["keys"] for line in map(json.loads, lines)}
    assert written
    for step, keys in written.items():
        # That file counts updates that were done before.
        assert [row["key"] for row in show(capsys, str(run), "--step", str(step + 1))] == keys


def test_ranks_and_sources_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    rows = show(capsys, MIXTURE, "--step", "2", "--world-size", "4")
    assert [row["rank"] for row in rows] == [str(n // 4) for n in range(16)]
    places = {row["source"]: row["shard"] for row in rows}
    assert places == {"drawings": "mmtrain/demo/debug/train.tar", "made_up": "synthetic"}


def test_a_page_shows_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    rows = show(capsys, RECIPE, "--step", "1", "--out", str(page))
    text = page.read_text()
    assert text.count("data:image/webp;base64,") == 16 and rows[0]["key"] in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["show", RECIPE, "--step", "0"], "0 must be an int, at least 1"),
        (["show", RECIPE, "--step", "21"], "--step 21: the run has 20 steps"),
        (["show", RECIPE], "--step"),
        (["show", "configs", "--step", "1"], "configs holds no recipe.toml"),
        (["show", "no.toml", "--step", "1"], "no.toml"),
        (["show", RECIPE, "--step", "1", "--world-size", "3"], "must divide train.batch_size = 16"),
        (["show", RECIPE, "--step", "1", "--out", "x.png"], "must end in .html"),
        (["show", RECIPE, "--step", "1", "--data.train", "no/*.tar"], "matches no file"),
        (["bench", RECIPE, "--batches", "1"], "at least 2"),
        (["bench", RECIPE, "--batches", "5"], "an epoch has 4; ask for fewer"),
        (["bench", RECIPE, "--rate", "0"], "0 must be a number above 0"),
        (["bench", RECIPE, "--json", "/no/such/x.json"], "/no/such is no folder"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert told in mistake(capsys, "data", *words)


def test_a_loader_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    words = ["--workers", "0", "1", "--batches", "3", "--rate", "1e6", "--json", str(out)]
    assert main(["data", "bench", RECIPE, *words]) == 0
    figures = json.loads(out.read_text())
    stages = {"read", "decode", "resize", "text", "rest"}
    for each in (figures["cold_ms"], figures["warm_ms"]):
        assert set(each) == stages | {"all"} and min(each[stage] for stage in stages) >= 0
        assert each["all"] == pytest.approx(sum(each[stage] for stage in stages))
    assert [one["workers"] for one in figures["rates"]] == [0, 1]
    assert all(one["samples_per_second"] > 0 for one in figures["rates"])
    each = 1e6 / figures["workers_needed"]
    assert each <= 1.01 * max(
        1e3 / figures["warm_ms"]["all"], *(one["samples_per_second"] for one in figures["rates"])
    )
    assert "1,000,000 samples/s take" in capsys.readouterr().out
