"""What a reader of a page is told beside its figures, and that the page agrees with itself."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmtrain.eval.look.look import _brightest
from mmtrain.eval.look.pictures import under_heat
from mmtrain.report import write_report
from mmtrain.report.chart import Series, line_chart
from mmtrain.report.facts import duration, of_training, run_making
from mmtrain.report.run_folder import read_run
from mmtrain.train.run_folder import write_facts
from tests.report.folders import make_run

SHOWN = '[[eval.zero_shot]]\nname = "{}"\ndata = {}\n'


@pytest.mark.parametrize(
    ("data", "evaluated", "same"),
    [
        ('train = "a.tar"', '"a.tar"', True),
        ('train = "a.tar"', '"b.tar"', False),
        ('train = ["x.tar", "a.tar"]', '["a.tar", "b.tar"]', True),
        ('[[data.mixture]]\ndata = "a.tar"\n[[data.mixture]]\ndata = "b.tar"', '"b.tar"', True),
        ("workers = 2", '"a.tar"', False),
    ],
)
def test_training_data_are_not_called_unseen(
    tmp_path: Path, data: str, evaluated: str, same: bool
) -> None:
    run = make_run(tmp_path / "run")
    recipe = f"[data]\n{data}\n{SHOWN.format('held-out', evaluated)}"
    (run / "recipe.toml").write_text(recipe)
    assert of_training(read_run(run)) == ({"held-out"} if same else set())
    other = make_run(tmp_path / "other")
    told = write_report((run,)).read_text()
    assert ("held-out reads the training" in told) is same
    compared = write_report((run, other), out=tmp_path / "compared.html").read_text()
    assert ("run: held-out reads the training" in compared) is same
    (run / "recipe.toml").write_text("[data")
    assert of_training(read_run(run)) == set()


def test_tiles_and_curves_tell_the_same(tmp_path: Path) -> None:
    """Also where a run became slower towards its end."""
    run = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["samples_per_second"] = 800.0 - 15 * row["step"]
        row["data_wait_fraction"] = row["step"] / 90
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report((run,)).read_text()
    tiles = dict(re.findall(r'class="name">([^<]+)</div>\s*<div class="value">([^<]+)<', page))
    curves = dict(re.findall(r'class="name">([^<]+)</span><span class="value">([^<]+)<', page))
    assert curves["Speed"] == f"median {tiles['Samples/s']} samples/s"
    assert float(curves["Loss"]) == pytest.approx(float(tiles["Loss"]), abs=6e-4)
    waiting = re.search(r"median, ([\d.]+) % waiting", page)
    assert waiting is not None and waiting[1] in curves["Waiting for data"]


def test_when_how_long_and_on_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")  # 40 lines of 32 samples, 300 a second
    assert run_making(read_run(run)) == "trained for 4 s"
    write_facts(run, recipe={}, facts={"device": "cuda", "ranks": 8})
    begun = json.loads((run / "run.json").read_text())["begun"]
    assert run_making(read_run(run)) == f"begun {begun} · trained for 4 s · on cuda × 8"
    facts = json.loads((run / "run.json").read_text()) | {"begun": "2020-01-01 00:00+00:00"}
    (run / "run.json").write_text(json.dumps(facts))
    # The tests' own words are no command of ours.
    assert "command" not in facts and "subtitle command" not in write_report((run,)).read_text()
    monkeypatch.setattr("sys.argv", ["/usr/lib/mmtrain/__main__.py", "train", "my run", "--resume"])
    write_facts(run, recipe={}, facts={})
    assert json.loads((run / "run.json").read_text())["begun"] == "2020-01-01 00:00+00:00"
    assert (
        "<code>mmtrain train &#39;my run&#39; --resume</code>" in write_report((run,)).read_text()
    )
    shown = [duration(seconds) for seconds in (0.2, 59, 61, 3601, 86400 * 2.5)]
    assert shown == ["1 s", "59 s", "1 min", "1.0 h", "2.5 days"]


def test_every_heading_is_in_the_list_of_contents(tmp_path: Path) -> None:
    page = write_report((make_run(tmp_path / "run"),)).read_text()
    contents = re.search(r'<nav class="contents".*?</nav>', page)
    assert contents is not None
    links = re.findall(r'href="#([^"]+)">([^<]+)<', contents[0])
    assert links == re.findall(r'<h2 id="([^"]+)">([^<]+)<', page) and len(links) > 4
    assert "<h2>" not in page


def test_pictures_are_there_when_it_is_printed(tmp_path: Path) -> None:
    """A lazy picture that was not scrolled to would be a white frame on paper, and a ground that a
    browser may leave out would be no dot."""
    page = write_report((make_run(tmp_path / "run"),)).read_text()
    assert "lazy" not in page and "print-color-adjust: exact" in page
    assert "@media screen and (prefers-color-scheme: dark)" in page


NOTHING = [((0.01, 0.0001), 1), ((0.0004, 0.00003), 1), ((0.00004, 0.00003), 0), ((0.1, 0.02), 2)]


@pytest.mark.parametrize(("peaks", "glows"), NOTHING)
def test_a_map_of_nothing_does_not_glow(peaks: tuple[float, float], glows: int) -> None:
    """Of what is written as +0.000, or is next to nothing beside the other maps."""
    maps_BRC = torch.tensor(peaks)[:, None, None] * torch.eye(2)
    black = Image.new("RGB", (8, 8))
    brightest = [
        np.array(under_heat(black, one, low=0.0, high=_brightest(one, maps_BRC))).sum(2).max()
        for one in maps_BRC
    ]
    assert sum(light > 300 for light in brightest) == glows, brightest


@pytest.mark.parametrize("steps", [(20, 500), (3, 10_000), (100, 250)])
def test_a_short_run_beside_a_long_one_is_no_sliver(steps: tuple[int, int]) -> None:
    lines = [
        Series(points=[(float(x), 1.0 + x) for x in range(1, last + 1)], number=number)
        for number, last in enumerate(steps)
    ]
    ends = re.findall(r'class="end c\d" cx="([\d.]+)"', line_chart(lines, label="x"))
    short, long = (float(end) for end in ends)
    assert long > short > 46 + 0.1 * (long - 46)
    assert len(re.findall('text-anchor="(?:middle|end)">[1-9]', line_chart(lines, label="x"))) > 2


def test_a_comparison_tells_differences_and_no_python(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, top1=top1) for name, top1 in (("a", 0.25), ("b", 0.3))]
    for number, run in enumerate(runs):
        data = SHOWN.format("held-out", f'"{number}.tar"')
        (run / "recipe.toml").write_text(f"[optim]\nbetas = [0.9, 0.9{number}]\n{data}")
    page = write_report(tuple(runs), out=tmp_path / "c.html").read_text()
    assert '30.0 % <span class="difference">+5.0</span>' in page
    assert "name = held-out, data = 1.tar" in page and "{&#39;" not in page
